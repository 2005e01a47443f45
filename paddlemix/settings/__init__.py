# SPDX-License-Identifier: Apache-2.0
"""What a model is and what a run shall do, as frozen data; standard library only.

``model.LlavaConfig`` is the architecture. ``published`` reads it from any published config.json, ``run`` the
settings of a training run. Begin with ``model``.
"""
