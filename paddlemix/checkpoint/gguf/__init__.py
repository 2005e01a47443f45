# SPDX-License-Identifier: Apache-2.0
"""GGUF, the file form of llama.cpp: ``write.convert_to_gguf`` out of any model folder, ``read`` back into one.

``names`` holds the tensor names and llama.cpp's order of rows, ``vocabulary`` the tokenizer, ``tower`` the file of
the vision tower ("mmproj"). The package ``gguf`` knows the container and the quantized blocks; it is an extra.
"""
