# SPDX-License-Identifier: Apache-2.0
"""Static graphs: a model folder is traced and saved, and answers through Paddle Inference without its layers.

Begin with ``write.export_model`` (folder to graphs) and ``opening.open_static`` (graphs to a ``Predictor``); what goes
into the graphs stands in ``graphs``, what asks them in ``static_model``.
"""
