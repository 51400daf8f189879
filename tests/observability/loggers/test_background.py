import threading
import time

from megatron_prime.observability.loggers.background import MAX_WAITING, BackgroundLogger
from megatron_prime.observability.loggers.protocol import StepRecord
from tests.support import deadlines


class Service:
    """A destination that fails while it is away."""

    def __init__(self):
        self.steps, self.closed, self.is_away = [], 0, False

    def log(self, record):
        if self.is_away:
            raise RuntimeError("the service is away\nwith a second line")
        self.steps.append(record.step)

    def close(self):
        self.closed += 1


def wait_for(condition):
    end = time.monotonic() + deadlines.seconds(20)
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_records_arrive_in_order_and_close_waits_for_them():
    service, warnings = Service(), []
    logger = BackgroundLogger("x", lambda: service, warnings.append)
    for step in range(100):
        logger.log(StepRecord(step, {}))
    logger.close()
    logger.close()
    assert (service.steps, service.closed, warnings) == (list(range(100)), 1, [])


def test_an_outage_warns_once_and_loses_nothing():
    service, warnings = Service(), []
    logger = BackgroundLogger("x", lambda: service, warnings.append)
    service.is_away = True
    logger.log(StepRecord(0, {}))
    wait_for(lambda: warnings)
    logger.log(StepRecord(1, {}))
    service.is_away = False
    logger.log(StepRecord(2, {}))
    logger.close()
    assert service.steps == [0, 1, 2]
    (warning,) = warnings
    assert "x fails (RuntimeError: the service is away)" in warning and "Training continues" in warning


def test_a_service_that_cannot_start_is_tried_again():
    service, warnings, attempts = Service(), [], []

    def connect():
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("no route")
        return service

    logger = BackgroundLogger("x", connect, warnings.append)
    wait_for(lambda: warnings)
    logger.log(StepRecord(7, {}))
    logger.close()
    assert (service.steps, len(warnings)) == ([7], 1)


def test_a_service_that_hangs_delays_nothing_and_is_left_at_the_deadline():
    released, warnings = threading.Event(), []

    class Hanging(Service):
        def log(self, record):
            released.wait()

    logger = BackgroundLogger("x", Hanging, warnings.append, close_timeout_s=0.05)
    started = time.monotonic()
    for step in range(2 * MAX_WAITING):
        logger.log(StepRecord(step, {}))
    logger.close()
    assert time.monotonic() - started < deadlines.seconds(5)
    assert len(warnings) == 1 and "within 0.05 s" in warnings[0]
    released.set()
