# SPDX-License-Identifier: Apache-2.0
"""Numbers and token strings that the published LLaVA checkpoints and data sets share."""

IGNORE_INDEX = -100
"""Label of a position that takes no part in the loss."""

IMAGE_TOKEN_INDEX = -200
"""Id that marks an image place in a token sequence. It is never fed to an embedding."""

IMAGE_TOKEN = "<image>"
IMAGE_PATCH_TOKEN = "<im_patch>"
IMAGE_START_TOKEN = "<im_start>"
IMAGE_END_TOKEN = "<im_end>"
