# SPDX-License-Identifier: Apache-2.0
"""Which workers a controller knows, and which of them gets the next request."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from paddlemix.serve.faults import RequestError, refused
from paddlemix.utils.shown import shown

LOTTERY, SHORTEST_QUEUE = "lottery", "shortest_queue"
METHODS = (LOTTERY, SHORTEST_QUEUE)


@dataclass
class Known:
    """What a worker has said of itself; ``seen`` is when it was last heard, on the clock of ``Workers``."""

    models: tuple[str, ...]
    speed: float
    queue: int
    seen: float
    beats: bool = True


class Workers:
    """Workers by their addresses. One that has not been heard for two heart-beats is not there any more."""

    def __init__(self, method: str, heart_beat: float, clock: Callable[[], float]) -> None:
        self.method = method
        self.expires = 2 * heart_beat
        self._clock = clock
        self._known: dict[str, Known] = {}
        self._seen: set[str] = set()
        self._random = random.Random()

    def register(self, address: str, models: tuple[str, ...], speed: float, queue: int, *, beats: bool = True) -> None:
        """A worker has come, or come again."""
        self._seen.update(models)
        self._known[address] = Known(models, speed, queue, self._clock(), beats)

    def beat(self, address: str, queue: int) -> bool:
        """A worker is still there; whether it is known."""
        known = self.alive().get(address)
        if known is None:
            return False
        known.queue, known.seen = queue, self._clock()
        return True

    def remove(self, address: str) -> None:
        """A worker cannot be reached."""
        self._known.pop(address, None)

    def alive(self) -> dict[str, Known]:
        """The workers that are there."""
        oldest = self._clock() - self.expires
        for address in [name for name, known in self._known.items() if known.beats and known.seen < oldest]:
            del self._known[address]
        return self._known

    def models(self) -> list[str]:
        """The models of all workers."""
        return sorted({model for known in self.alive().values() for model in known.models})

    def only_model(self) -> str:
        """What a request without a model means: the one that is served; RequestError when there are several."""
        found = self.models()
        if len(found) > 1:
            raise refused(f"model is not given; served are {', '.join(found)}", "model")
        return found[0] if found else ""

    def missing(self, model: str) -> RequestError:
        """The error for a model that no worker has now: 404 for one that none ever had while others are served."""
        known = ", ".join(self.models())
        if known and model not in self._seen:
            return RequestError(404, f"the model {shown(model)} is not served here; known are {known}", param="model",
                                code="model_not_found")  # fmt: skip
        return RequestError(503, f"no worker has the model; known are {known or 'none'}", param="model",
                            code="no_worker", retry_after=5)  # fmt: skip

    def pick(self, model: str) -> str:
        """The address of a worker with the model; RequestError when there is none (``missing``)."""
        found = {address: known for address, known in self.alive().items() if model in known.models}
        if not found:
            raise self.missing(model)
        if self.method == LOTTERY:
            speeds = [max(known.speed, 1e-6) for known in found.values()]
            return self._random.choices(list(found), weights=speeds)[0]
        address = min(found, key=lambda name: found[name].queue / max(found[name].speed, 1e-6))
        found[address].queue += 1  # until its next heart-beat says how many it really has
        return address
