"""Requests to a store that are tried again while the reason passes, and what is said where it does not.

A store that answers 5xx or "slow down", a cut connection and a body that is too slow are tried again; a refusal, a
missing file and a wrong name are not: they do not mend themselves.
"""

from __future__ import annotations

import dataclasses
import http.client
import random
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from resnest_seg.errors import DatasetError, printable
from resnest_seg.files import FULL

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Limits:
    """How often and how long a store is asked.

    Attributes:
        tries: Tries of one request, the first included.
        wait: Seconds of waiting after the first failure; each later one doubles it. Half of it is random, so that many
            processes do not come back at the same instant.
        longest_wait: Seconds of the longest waiting.
        patience: Seconds that a try may take, besides what `pace` allows.
        pace: Bytes per second; a body that comes more slowly is asked for again.
    """

    tries: int = 8
    wait: float = 0.5
    longest_wait: float = 16.0
    patience: float = 30.0
    pace: float = 64 * 1024

    def seconds(self, size: int | None) -> float | None:
        """Return the seconds that a try to read `size` bytes may take; None where the size is not known."""
        return None if size is None else self.patience + size / self.pace


LIMITS = Limits()
"""With these, a store may be away for half a minute: waits of 0.5, 1, 2, 4, 8, 16 and 16 seconds, or half of that."""

LIBRARIES = {
    "s3": "'resnest-seg[remote]'",
    "s3a": "'resnest-seg[remote]'",
    "memory": "'resnest-seg[remote]'",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "az": "adlfs",
    "adl": "adlfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "ssh": "paramiko",
}
"""Scheme of an address -> what `pip install` needs for it, besides fsspec."""

_PASSING = {
    ("botocore", "HTTPClientError"),  # unreachable, timed out, cut off; EndpointConnectionError is one
    ("botocore", "IncompleteReadError"),
    ("botocore", "ResponseParserError"),  # throttled stores answer what is no XML
    ("aiohttp", "ClientError"),
    ("requests", "RequestException"),
    ("urllib3", "HTTPError"),
    ("azure", "ServiceRequestError"),
    ("azure", "ServiceResponseError"),
    ("google", "TransportError"),
}
"""Library and class of errors of the network, which carry no answer of the store."""

_THROTTLED = re.compile(
    "SlowDown|Throttl|RequestTimeout$|TooManyRequests|RequestLimitExceeded|InternalError|ServiceUnavailable|BandwidthLimit"
)


class ShortBodyError(Exception):
    """A body has another length than the store's listing says, or than its header."""


def persist(
    action: Callable[[], T],
    where: str,
    *,
    verb: str = "read",
    limits: Limits = LIMITS,
    pause: Callable[[float], None] = time.sleep,
) -> T:
    """Carry out a request to a store, again where its failure may pass.

    Args:
        action: The request; errors of any type.
        where: The address, for messages.
        verb: What it does: "read", "list", "write", for messages.
        limits: How often and how long.
        pause: Waits for so many seconds.

    Raises:
        DatasetError: The last try failed, or an earlier one for a reason that does not pass. It names the address, the
            reason, what fixes it, and the number of tries.
        OSError: A disk of this machine is full, or may not be written to: no matter of the store.
    """
    begun = time.monotonic()
    for number in range(1, limits.tries + 1):
        try:
            return action()
        except DatasetError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise
            problem = error
        if number == limits.tries or not passes(problem):
            break
        pause(min(limits.wait * 2 ** (number - 1), limits.longest_wait) * _RANDOM.uniform(0.5, 1.0))
    tried = "" if number == 1 else f" after {number} tries in {time.monotonic() - begun:.0f} s"
    raise DatasetError(f"cannot {verb} {where}{tried}: {explained(problem, where)}") from None


_RANDOM = random.SystemRandom()  # not the generator that samples are drawn from


def passes(error: BaseException) -> bool:
    """True if the same request may succeed later: the store is busy or away, or the connection broke."""
    status, code, _ = answer_of(error)
    if status is not None:
        return status in (408, 425, 429) or (status >= 500 and status != 501) or bool(_THROTTLED.search(code))
    return any(map(_of_the_network, _chain(error))) and not isinstance(error, FileNotFoundError | PermissionError)


def _of_the_network(error: BaseException) -> bool:
    """True for an error of the connection, which carries no answer of the store."""
    names = {(kind.__module__.partition(".")[0], kind.__name__) for kind in type(error).__mro__}
    if names & {("botocore", "SSLError"), ("aiohttp", "ClientResponseError")}:
        return False
    own = isinstance(error, TimeoutError | ConnectionError | http.client.HTTPException | ShortBodyError)
    return own or bool(names & _PASSING)


def answer_of(error: BaseException) -> tuple[int | None, str, str]:
    """Return the HTTP status, the code and the text of a store's answer; no status where none came."""
    for each in _chain(error):
        answer: Any = getattr(each, "response", None)
        if _of_the_network(each) and answer is None:
            break  # below it, aiohttp has statuses that no store has sent
        if isinstance(answer, dict) and "Error" in answer:  # botocore's
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
            told = answer["Error"]
            code = str(told.get("Code", ""))
            status = int(code) if status is None and code.isdigit() else status
            return status, code, str(told.get("Message", ""))
        for name in ("status_code", "status", "code"):  # azure's, aiohttp's, gcsfs's
            status = getattr(each, name, None)
            if isinstance(status, int | str) and str(status).isdigit() and 300 <= int(status) < 600:
                return int(status), "", str(getattr(each, "message", "") or each)
    return None, "", ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that it was raised from."""
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def explained(error: BaseException, where: str) -> str:
    """Return the reason of a failure and what fixes it, as a sentence without secrets."""
    scheme = re.findall(r"([a-z][a-z0-9+.-]*)://", where)[-1:] or [""]
    if any(isinstance(each, ImportError) for each in _chain(error)):
        library = LIBRARIES.get(scheme[0], f"the library of fsspec for {scheme[0]}://")
        return f"a library is missing ({without_secrets(str(error))}). {scheme[0]}:// needs: pip install {library}."
    names = {kind.__name__ for each in _chain(error) for kind in type(each).__mro__}
    status, code, text = answer_of(error)
    said = " ".join(part for part in (str(status or ""), "" if code == str(status) else code) if part)
    if "NoCredentialsError" in names or "PartialCredentialsError" in names or "ProfileNotFound" in names:
        told = without_secrets(str(error)).rstrip(".")
        return f"{told[:1].lower()}{told[1:]}. {_CREDENTIALS}"
    if not said and ("EndpointConnectionError" in names or "ConnectTimeoutError" in names):
        return f"{without_secrets(str(error)).rstrip('.')}. Is the address of the store right (AWS_ENDPOINT_URL)?"
    for pattern, advice in _ADVICE:
        if said and re.search(pattern, said):
            told = without_secrets(text).rstrip(".")
            return f"{advice[0]} ({said}{': ' if told else ''}{told}).{' ' if advice[1] else ''}{advice[1]}"
    if "ParamValidationError" in names:
        return "this cannot be the name of a bucket. An address is s3://BUCKET/FOLDER, without keys or passwords."
    if isinstance(error, FileNotFoundError):
        return "there is no such file or folder."
    if "BadZipFile" in names:
        return f"{without_secrets(str(error)).rstrip('.')}, or a truncated one."
    if _NO_RANGES.search(str(error)):
        return WHOLE_FILES_ONLY
    told = without_secrets(text or " ".join(str(error).split()))[:300].rstrip(".") or "no reason given"
    shown = said or type(error).__name__
    if isinstance(error, ShortBodyError):
        return f"{told}."
    if isinstance(error, TimeoutError):
        return f"the store sent too little in the time ({shown}). Is the connection very slow, or the store overloaded?"
    if passes(error):
        return f"{told} ({shown}). The store or the connection to it is overloaded or away: start again later."
    return f"{told} ({shown}). Are address and credentials right?"


WHOLE_FILES_ONLY = (
    "the server sends whole files only, and no ranges of bytes. Download the file, or serve it by a server that knows "
    "ranges (HTTP 206), such as nginx."
)
"""What is said where a part of a file is asked for, and not to be had."""

_NO_RANGES = re.compile("support range requests|Cannot seek streaming HTTP file")  # fsspec's words

_CREDENTIALS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run 'aws configure'; for a public bucket: "
    "export FSSPEC_S3='{\"anon\": true}'."
)

_ADVICE = (
    (
        r"InvalidAccessKeyId",
        (
            "the store does not know the access key",
            "Check AWS_ACCESS_KEY_ID (or AWS_PROFILE), and that AWS_ENDPOINT_URL names the store that the key is for.",
        ),
    ),
    (r"SignatureDoesNotMatch", ("the secret key does not belong to the access key", "Check AWS_SECRET_ACCESS_KEY.")),
    (
        r"ExpiredToken|InvalidToken|TokenRefreshRequired",
        ("the credentials have expired or are not valid", "Get new ones: aws sso login, or a new AWS_SESSION_TOKEN."),
    ),
    (r"RequestTimeTooSkewed", ("the clock of this machine is wrong", "Set it (timedatectl).")),
    (r"NoSuchBucket", ("there is no such bucket", "Check its name, and that AWS_ENDPOINT_URL names its store.")),
    (
        r"AuthorizationHeaderMalformed|PermanentRedirect|IllegalLocation|^30[178]",
        ("the bucket lies in another region", "Set AWS_DEFAULT_REGION to the region of the bucket."),
    ),
    (
        r"PreconditionFailed|^412",
        ("it was changed while this runs", "Start again, so that the new files are listed."),
    ),
    (r"InvalidObjectState", ("it is archived", "Restore it first (aws s3api restore-object).")),
    (r"^404", ("there is no such file or folder", "")),
    (
        r"^40[13]",
        (
            "permission was denied",
            "The key needs the right to list the bucket and to read (for outputs: to "
            "write) its objects: s3:ListBucket, s3:GetObject, s3:PutObject.",
        ),
    ),
)
"""Pattern of a status and code -> what it means and what fixes it; the first that fits."""


_SLASHED = re.compile(r"""(s3a?:)?//(?!arn:)[^/@\s:"'\[]+:(?!:)(?(1)|(?!\d+(?:[/?#]|$)))[^@\s"']*@""")
"""A user and a password with a slash in it, as AWS's have: no host and its port, which no address of S3 has."""


def without_secrets(text: str) -> str:
    """Return an address or a message without passwords and signatures in it, fit to be shown."""
    text = re.sub(r"//[^/\s]*@", "//", printable(text))  # greedy: a password may contain an @
    text = _SLASHED.sub(r"\1//", text)
    text = re.sub(r"[^\s/@\"']+:[^\s/@\"']+@", "", text)
    return re.sub(r"(?i)([?&][^=&\s]*(?:sig|token|key|secret|passw|credential)[^=&\s]*=)[^&\s]+", r"\1***", text)
