# Flags for CUDA machines: source config/gpu/env.sh, then the command. A value that is set already is kept.

# Memory is taken as it is needed, so that other processes can share the card.
export FLAGS_allocator_strategy="${FLAGS_allocator_strategy:-auto_growth}"
# One run gives the same numbers as the next; costs a little speed.
export FLAGS_cudnn_deterministic="${FLAGS_cudnn_deterministic:-1}"
