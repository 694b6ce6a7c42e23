"""The limits of the HTTP server and their defaults, readable without TensorFlow or FastAPI."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Attributes:
        max_bytes: int, maximum size of a request's body.
        max_pixels: int, maximum height times width of an image, and of all images of a batch.
        max_batch: int, maximum number of images in a batch.
        max_wait: float, maximum seconds that an image waits for others of its size.
        max_requests: int, maximum number of requests in progress, from the first byte to the last;
            further ones are answered with 503 before they are read.
        rate: float, average requests per second from one address, with bursts of twice as many;
            further ones are answered with 429. None: no limit.
        body_seconds: float, maximum seconds for the arrival of a body; answered with 408.
    """

    max_bytes: int = 16_000_000
    max_pixels: int = 4_000_000
    max_batch: int = 8
    max_wait: float = 0.01
    max_requests: int = 64
    rate: float | None = None
    body_seconds: float = 30.0

    @property
    def max_side(self):
        """Maximum height or width: four times that of a square with `max_pixels`.

        Networks that pool columns or rows need more memory for a very long picture than for a
        square one of the same area.
        """
        return int(4 * self.max_pixels**0.5)
