# SPDX-License-Identifier: Apache-2.0
"""A page for browsers that asks a controller or a worker over HTTP. It needs gradio, and neither paddle nor a model.

``talk`` holds a conversation and what is asked, ``asking`` the way to a worker; ``view`` is the only module that
imports gradio.
"""
