# SPDX-License-Identifier: Apache-2.0
"""Answers over HTTP: OpenAI's chat completions and LLaVA's worker protocol, from one engine with continuous batching.

``model_worker`` is the command. ``engine.Engine`` is the only thread that touches the model; ``app`` holds the routes,
``guard`` what every request has to pass before one of them, ``listening`` the socket and the way to stop.
"""
