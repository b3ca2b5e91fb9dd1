"""Faults that a person can mend: every message names what was given, why it cannot be, and what to do."""


class DarwinLMError(Exception):
    """Base of all faults that DarwinLM raises on purpose."""


def first_line(fault: BaseException) -> str:
    """The first line of a library's message, or its kind where it says nothing."""
    return (str(fault).strip() or type(fault).__name__).splitlines()[0]


class RequestError(DarwinLMError):
    """The request cannot be fulfilled as typed. The command line prints the message and exits with code 2.

    Args:
        faults: one message, or several that were found together.
    """

    def __init__(self, *faults: str) -> None:
        self.faults = faults
        super().__init__("\n".join(faults))


class DamagedFileError(RequestError):
    """A file of a run is missing, cut short or altered."""


class CalibrationError(RequestError):
    """The calibration data do not determine the problem: NaN, Inf, or a Hessian that is not positive definite."""


class InterruptedReading(DarwinLMError):
    """A connection broke on the way and could not be made again. Exit code 1; the same command goes on."""
