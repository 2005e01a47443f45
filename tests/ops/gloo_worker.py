# SPDX-License-Identifier: Apache-2.0
"""A process of test_ops_compat.py: a group beside the first one, and what it leaves in the store of all processes."""

import paddle
from paddle.distributed import collective

from paddlemix.ops import compat

paddle.distributed.init_parallel_env()  # the first group leaves its addresses in that store
compat.keep_gloo_groups_apart()
rank = paddle.distributed.get_rank()
before = [collective._default_store.get(str(each)) for each in range(2)]
for _ in range(2):
    total = paddle.ones([1]) * (rank + 1)
    paddle.distributed.all_reduce(total, group=paddle.distributed.new_group([0, 1]))
    print("sum", float(total))
after = [collective._default_store.get(str(each)) for each in range(2)]
print("addresses:", "those of the first group" if before == after else "overwritten", flush=True)
paddle.distributed.barrier()
