# shellcheck shell=bash
# Variables for CUDA machines. Use: source config/gpu/env.sh, then the command. A variable that is set already is kept.

# Memory is taken as it is needed, so that other processes can share the card.
export FLAGS_allocator_strategy="${FLAGS_allocator_strategy:-auto_growth}"
# One run gives the same numbers as the next; costs a little speed.
export FLAGS_cudnn_deterministic="${FLAGS_cudnn_deterministic:-1}"
export FLAGS_embedding_deterministic="${FLAGS_embedding_deterministic:-1}"
# Nothing is tried out to find the fastest convolution: the only one is the patch embedding.
export FLAGS_cudnn_exhaustive_search="${FLAGS_cudnn_exhaustive_search:-0}"

# For you to decide; nothing is set here:
# CUDA_VISIBLE_DEVICES=0,1,2,3   cards of this process, counted from 0; an 8-card machine has 0 to 7.
# NCCL_SOCKET_IFNAME=eth0        network interface between machines; NCCL_DEBUG=INFO tells what NCCL chose.
