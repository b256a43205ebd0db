"""The Message Batches endpoints, called patiently: rate limits, overload and lost connections pass.

Only a submission is never simply repeated: the server may have accepted a batch whose answer was lost, and would be
paid twice. The endpoint knows no idempotency key, so the caller looks for such a batch in the server's list.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import httpx2
from anthropic import Anthropic, AnthropicError, APIConnectionError, APIError, APIStatusError, NotFoundError
from anthropic.pagination import SyncPage
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
from anthropic.types.messages.batch_create_params import Request
from tqdm.auto import tqdm

from sgtm.config import ConfigError, TranslateConfig
from sgtm.data.ledger import Mark

KEY = "ANTHROPIC_API_KEY"
_NO_ANSWER = "the server's answer is none of Message Batches; is base_url right?"
T = TypeVar("T")


class UnansweredError(Exception):
    """A submission without a clear answer: the server may have the batch, or not."""


class GoneError(Exception):
    """The server does not know the batch, or has no results of it any more."""


class Server:
    """The server's Message Batches.

    Raises:
        ConfigError: no key in the environment, or one that cannot be sent; from any call: the server refuses, or
            is not to be reached for as long as the settings have patience. No message contains the key.
    """

    def __init__(self, config: TranslateConfig) -> None:
        self._config, self._key = config, _key()
        # The library would repeat submissions as well; all repeating is done here.
        self._client = Anthropic(api_key=self._key, base_url=config.base_url, max_retries=0)
        if self._client.base_url.scheme not in ("http", "https"):
            raise ConfigError(f"base_url={str(self._client.base_url)!r} is no address; begin with https://")
        self._batches = self._client.messages.batches

    def submit(self, requests: list[Request]) -> str:
        """Submit a batch and return the server's name of it.

        Raises:
            UnansweredError: the server may have it all the same.
        """
        return self._patiently(lambda: self._submit(requests))

    def _submit(self, requests: list[Request]) -> str:
        try:
            return _checked(self._batches.create(requests=requests)).id
        except APIStatusError as error:
            if error.status_code == 429 or not _passes(error):
                raise  # a clear no
            raise UnansweredError(self._said(error)) from error
        except (APIError, httpx2.HTTPError, ValueError) as error:  # no answer, or one that cannot be read
            raise UnansweredError(self._said(error)) from error

    def mark(self) -> Mark | None:
        """The server's newest batch; None if it has none."""
        page = self._patiently(lambda: self._page(1))
        return Mark(page.data[0].id, page.data[0].created_at) if page.data else None

    def since(self, mark: Mark | None) -> list[MessageBatch]:
        """All batches that may be newer than ``mark`` (which may have been deleted)."""

        def read() -> list[MessageBatch]:
            found = []
            for batch in self._page(100):  # the most recent first; further pages as needed
                if mark is not None and (batch.id == mark.server_id or batch.created_at < mark.time):
                    break
                found.append(batch)
            return found

        return self._patiently(read)

    def has_ended(self, server_id: str) -> bool:
        """Whether a batch has its results.

        Raises:
            GoneError: the server does not know it, or no longer has its results.
        """
        batch = self._patiently(lambda: self._look(server_id))
        if batch.processing_status == "ended" and batch.results_url is None:
            raise GoneError(f"batch {server_id} has no results any more")
        return batch.processing_status == "ended"

    def results(self, server_id: str) -> list[MessageBatchIndividualResponse]:
        """The results of a batch that has ended, in any order.

        Raises:
            GoneError: the server no longer has them.
        """
        return self._patiently(lambda: list(self._read(server_id)))

    def first_id(self, server_id: str) -> str:
        """The custom id of some request of a batch that has ended, or "" if it has no results.

        Raises:
            GoneError: the server no longer has them.
        """

        def read() -> str:
            with closing(self._read(server_id)) as results:
                return next((result.custom_id for result in results), "")

        return self._patiently(read)

    def _page(self, limit: int) -> SyncPage[MessageBatch]:
        try:
            return self._batches.list(limit=limit)
        except AttributeError as error:  # what the library makes of a page that is no JSON
            raise ConfigError(_NO_ANSWER) from error

    def _look(self, server_id: str) -> MessageBatch:
        try:
            return _checked(self._batches.retrieve(server_id))
        except NotFoundError as error:
            raise GoneError(f"the server knows no batch {server_id}") from error

    def _read(self, server_id: str) -> Generator[MessageBatchIndividualResponse]:
        try:
            with closing(self._batches.results(server_id)) as stream:
                yield from stream
        except NotFoundError as error:
            raise GoneError(f"the server knows no results of batch {server_id}") from error
        except AnthropicError as error:
            if isinstance(error, APIError):
                raise
            raise GoneError(
                f"batch {server_id} has no results any more"
            ) from error  # the library's word for no results_url

    def wait(self, number: int, why: Exception) -> None:
        """Sleep before the try after try ``number`` (from 0): longer each time, at random, and as long as told."""
        seconds = min(self._config.backoff_seconds * 2**number, self._config.backoff_limit_seconds)
        seconds = max(seconds * random.uniform(0.5, 1), _retry_after(why))
        tqdm.write(f"{self._said(why)}; trying again in {seconds:.0f} s", file=sys.stderr)
        time.sleep(seconds)

    def _patiently(self, call: Callable[[], T]) -> T:
        for number in range(self._config.retries + 1):
            try:
                return call()
            except (APIError, httpx2.HTTPError, json.JSONDecodeError, UnicodeDecodeError) as error:
                if not _passes(error):
                    raise ConfigError(f"the server refuses: {self._said(error)}") from error
                if number == self._config.retries:
                    raise ConfigError(
                        f"given up after {number + 1} tries: {self._said(error)}; the same command goes on from here"
                    ) from error
                self.wait(number, error)
        raise AssertionError("the last try returns or raises")

    def _said(self, error: Exception) -> str:
        """What went wrong, in one line, without the key (which a server may quote)."""
        if isinstance(error, APIStatusError):
            said = f"status {error.status_code} ({error.api_message or error.type or 'no message'})"
        elif isinstance(error, APIConnectionError):
            said = f"{error} ({self._client.base_url.host})"
        else:
            said = str(error) or type(error).__name__
        return " ".join(said.replace(self._key, "[key]").split())[:500]


def _key() -> str:
    """The key, from the environment alone."""
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise ConfigError(f"no key: set {KEY} in the environment (it is never written anywhere)")
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"{KEY} holds characters that no key has; copy it again")
    return key


def _checked(batch: MessageBatch) -> MessageBatch:
    """``batch``, if it is one; a proxy's page with status 200 is not."""
    if not isinstance(batch, MessageBatch):
        raise ConfigError(_NO_ANSWER)
    return batch


def _passes(error: Exception) -> bool:
    """Whether an error may be gone when the call is made again."""
    if isinstance(error, APIStatusError):
        return error.status_code in (408, 409, 429) or error.status_code >= 500
    return True  # a connection that was refused, lost or timed out, or an answer that was cut short


def _retry_after(error: Exception) -> float:
    """Seconds that the server asks to wait, as a number or as a date; 0 if it does not."""
    cause = error.__cause__ if isinstance(error, UnansweredError) else error
    value = cause.response.headers.get("retry-after", "") if isinstance(cause, APIStatusError) else ""
    try:
        return float(value)
    except ValueError:
        pass
    try:
        return (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0
