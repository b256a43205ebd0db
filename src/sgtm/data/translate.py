"""A column of texts -> its translation beside it, by Message Batches: what ``data tinystories`` reads.

A document is its text: equal texts are translated once, and what is translated is never submitted again. What has been
done stands in a ledger beside the output, and a run that was killed goes on from it. A translation is never anything
but what the model wrote, to its end: failures stand in a file of their own, by document and reason.
"""

import hashlib
import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from anthropic.types.messages import MessageBatch, MessageBatchIndividualResponse
from anthropic.types.messages.batch_create_params import Request
from tqdm.auto import tqdm

from sgtm.config import ConfigError, TranslateConfig
from sgtm.data.ledger import Ledger, OpenBatch, Outcome, Tokens
from sgtm.data.message_batches import GoneError, Server, UnansweredError
from sgtm.data.tinystories import open_columns

_MAX_BYTES = 200_000_000  # of one submission; the server takes 256 MB
_REQUEST_BYTES = 300  # of a request's JSON beside its prompt and text, more than enough
_REQUEST_TOKENS = 10  # of a request beside its prompt and text
_ROWS = 5000  # that are joined at a time
_ECHO_WORDS = 5  # a text of fewer words (names, cries) may well be its own translation
_HOPELESS = ("invalid_request_error", "not_found_error")  # errors that another attempt will meet again


class Text(NamedTuple):
    """A row of the source: what names it in the files written, what it is known by, and itself."""

    id: str
    key: str
    text: str


Texts = Callable[[], Iterator[Text]]  # can be read more than once


@dataclass(frozen=True)
class Plan:
    """What a source asks for. ``documents`` are different texts that are not empty; ``left`` of them are to be sent."""

    rows: int
    documents: int
    left: int
    tokens: Tokens
    dollars: float | None

    def __str__(self) -> str:
        return (
            f"{self.rows:,} rows, {self.documents:,} different texts, {self.left:,} to translate: "
            f"about {_amount(self.tokens, self.dollars)}"
        )


@dataclass(frozen=True)
class Report:
    """What has been translated, over all runs. Rows with equal texts count each; ``left`` are not submitted yet."""

    translated: int
    failed: int
    left: int
    tokens: Tokens
    dollars: float | None
    note: str
    out: Path | None

    def __str__(self) -> str:
        lines = [f"{self.translated:,} rows translated, {self.failed:,} failed, {self.left:,} left"]
        lines += [f"{_amount(self.tokens, self.dollars)} taken, over all runs"]
        lines += [self.note] if self.note else []
        return "\n".join([*lines, f"written to {self.out}" if self.out else "nothing to write"])


def plan(name: str, split: str, config: TranslateConfig) -> Plan:
    """What ``translate`` would do, from the source and the ledger alone: nothing is sent or written.

    Raises:
        ConfigError: see ``translate``.
    """
    config.check()
    texts, state = _texts(name, split, config), config.beside(".state")
    with Ledger(state if state.exists() else ":memory:", config.attempts) as ledger:
        return _plan(texts, ledger, config)


def translate(name: str, split: str, config: TranslateConfig) -> Report:
    """Translate ``config.text_column`` of a source, and write it with its translation to ``config.out``.

    Args:
        name: a file, a folder, or a name on the Hub (see ``tinystories.source``).
        split: of a data set that has several.

    Raises:
        ConfigError: settings that make no sense, no such source or column, no key in the environment, a server that
            refuses, a full disk. What is done by then is kept, and the same call goes on from it.
    """
    config.check()
    texts = _texts(name, split, config)
    server = Server(config)
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"{config.out.parent} cannot be made a folder: {error.strerror}; choose another --out"
        ) from error
    with Ledger(config.beside(".state"), config.attempts) as ledger:
        ledger.bind({"model": config.model, "prompt": config.system, "params": config.params})
        if config.retry_failures:
            ledger.retry_failures()
        todo = _plan(texts, ledger, config)
        print(todo)
        try:
            note = _Translator(texts, ledger, server, config, todo.left).run()
        except KeyboardInterrupt:
            number = len(ledger.open_batches())
            raise ConfigError(
                f"interrupted; {number} batches go on at the server, and the same command goes on from here"
            ) from None
        return _join(texts, ledger, config, note, {"source": name, "split": split})


def _texts(name: str, split: str, config: TranslateConfig) -> Texts:
    """The source's texts that are not empty."""
    rows, _ = open_columns(name, split, [config.text_column, *([config.id_column] if config.id_column else [])])

    def read() -> Iterator[Text]:
        for i, row in enumerate(rows):
            text = row[config.text_column] or ""
            if not isinstance(text, str):
                raise ConfigError(f"{name}, row {i}: {config.text_column}={text!r} must be text")
            if text.strip():
                key = _key_of(text)
                yield Text(str(row[config.id_column]) if config.id_column else key, key, text)

    return read


def _key_of(text: str) -> str:
    return hashlib.sha256(text.strip().encode()).hexdigest()[:32]


def _plan(texts: Texts, ledger: Ledger, config: TranslateConfig) -> Plan:
    rows, seen, left, tokens = 0, set(), 0, Tokens()
    for text in tqdm(texts(), "reading", unit="", unit_scale=True, leave=False):
        rows += 1
        if text.key not in seen:
            seen.add(text.key)
            if ledger.is_waiting(text.key):
                left, tokens = left + 1, tokens + _estimate(text.text, config)
    if not rows:
        raise ConfigError(f"the source has no text in {config.text_column}; is it the right column?")
    return Plan(rows, len(seen), left, tokens, _dollars(tokens, config))


def _estimate(text: str, config: TranslateConfig) -> Tokens:
    own = len(text) / config.characters_per_token
    prompt = len(config.system) / config.characters_per_token
    return Tokens(round(own + prompt) + _REQUEST_TOKENS, min(round(own * config.expansion) + 1, config.max_tokens))


def _dollars(tokens: Tokens, config: TranslateConfig) -> float | None:
    return None if config.prices is None else tokens.dollars(config.prices)


def _amount(tokens: Tokens, dollars: float | None) -> str:
    cost = "" if dollars is None else f", ${dollars:,.2f}"
    return f"{tokens.input:,} input and {tokens.output:,} output tokens{cost}"


class _Translator:
    """Keeps ``concurrency`` batches in flight until nothing waits, or the budget would be exceeded."""

    def __init__(self, texts: Texts, ledger: Ledger, server: Server, config: TranslateConfig, left: int) -> None:
        self._texts, self._ledger, self._server, self._config = texts, ledger, server, config
        in_flight = sum(batch.documents for batch in ledger.open_batches())
        self._progress = tqdm(total=left + in_flight, desc="texts", unit="", unit_scale=True, leave=False)
        self._foreign: set[tuple[str, str]] = set()  # (our name, server's name) of batches that are not the same

    def run(self) -> str:
        """Translate all that waits; returns why it ended early, or "" if it did not."""
        if any(batch.server_id is None for batch in self._ledger.open_batches()):
            time.sleep(self._config.settle_seconds)  # a killed run may have submitted it a moment ago
        with self._progress:
            for number in count():
                moved, unaffordable = self._round()
                if unaffordable:
                    return self._over_budget(unaffordable)
                if not moved or not self._ledger.num_waiting():
                    return ""
                self._server.wait(number, RuntimeError("some texts have to be submitted again"))
        raise AssertionError("rounds end by themselves")

    def _round(self) -> tuple[bool, Mapping[str, str] | None]:
        """Submit all texts that wait, and see all batches to their end.

        Returns whether there was any, and the batch that the budget has no room for.
        """
        batches = _batches(self._texts(), self._ledger, self._config)
        batch, moved = next(batches, None), False
        while True:
            while batch and len(self._ledger.open_batches()) < self._config.concurrency and self._is_affordable(batch):
                self._submit(batch)
                batch, moved = next(batches, None), True
            in_flight = self._ledger.open_batches()
            if not in_flight:
                return moved, batch
            moved = True
            if not any(self._advance(each) for each in in_flight):
                time.sleep(self._config.poll_seconds)

    def _submit(self, texts: Mapping[str, str]) -> None:
        """Submit ``texts`` (by key) once. Without an answer, look whether the server has them before trying again."""
        batch = OpenBatch(secrets.token_hex(8), None, self._server.mark(), len(texts))
        self._ledger.note(batch, texts, _estimate_all(texts.values(), self._config))
        requests = [_request(f"{batch.name}-{key}", text, self._config) for key, text in texts.items()]
        for number in range(self._config.retries + 1):
            try:
                server_id = self._server.submit(requests)
            except ConfigError:  # a clear no
                self._ledger.release(batch.name)
                raise
            except UnansweredError as error:
                time.sleep(self._config.settle_seconds)
                if self._candidates(batch):
                    return  # which of them is ours, if any, shows when they have ended
                self._server.wait(number, error)
            else:
                self._ledger.submitted(batch.name, server_id)
                return
        self._ledger.release(batch.name)
        raise ConfigError("given up: submissions get no answer; the same command goes on from here")

    def _advance(self, batch: OpenBatch) -> bool:
        """Take in what has happened to a batch; returns whether anything has."""
        if batch.server_id is None:
            return self._find(batch)
        try:
            if not self._server.has_ended(batch.server_id):
                return False
            results = self._server.results(batch.server_id)
            if len({result.custom_id for result in results}) < batch.documents:
                results += self._server.results(batch.server_id)  # before anything is paid for again
        except GoneError as error:
            if not self._config.retry_failures:
                raise ConfigError(
                    f"{error}; use a key of the workspace that submitted it, or --retry-failures to submit its "
                    "texts again"
                ) from error
            results = []
        self._settle(batch, _outcomes(batch.name, results))
        return True

    def _settle(self, batch: OpenBatch, outcomes: Mapping[str, Outcome]) -> None:
        self._ledger.settle(batch.name, outcomes)
        self._progress.update(
            sum(outcome.translation is not None or not outcome.again for outcome in outcomes.values())
        )
        dollars = _dollars(self._ledger.spent(), self._config)
        self._progress.set_postfix_str("" if dollars is None else f"${dollars:,.2f}")

    def _find(self, batch: OpenBatch) -> bool:
        """Look for a batch whose answer was lost: the one with our name in its results; returns whether that is known.

        While one that may be it has not ended, it is not. If there is none, the texts wait again.
        """
        going_on = False
        for candidate in self._candidates(batch):
            if candidate.processing_status != "ended":
                going_on = True
            elif self._is_same(batch, candidate.id):
                self._ledger.submitted(batch.name, candidate.id)
                return True
            else:
                self._foreign.add((batch.name, candidate.id))
        if not going_on:
            self._ledger.release(batch.name)
        return not going_on

    def _candidates(self, batch: OpenBatch) -> list[MessageBatch]:
        """Batches at the server that may be ``batch``: newer, of the same size, and not known to be another."""
        known = self._ledger.server_ids() | {theirs for ours, theirs in self._foreign if ours == batch.name}
        found = self._server.since(batch.mark)
        return [b for b in found if b.id not in known and _size(b) == batch.documents]

    def _is_same(self, batch: OpenBatch, server_id: str) -> bool:
        with suppress(GoneError):
            return self._server.first_id(server_id).startswith(f"{batch.name}-")
        return False

    def _is_affordable(self, texts: Mapping[str, str]) -> bool:
        """Whether all spent, all in flight and ``texts`` stay within the budget, by estimates where need be."""
        spent, config = self._ledger.spent(), self._config
        guessed, coming = self._ledger.estimated(settled=True), self._ledger.estimated(settled=False)
        coming += _estimate_all(texts.values(), config)
        # What batches took beyond their estimate, the others will take as well; what they took less is not counted on.
        total = spent + Tokens(
            round(coming.input * max(1, spent.input / max(1, guessed.input))),
            round(coming.output * max(1, spent.output / max(1, guessed.output))),
        )
        if config.budget_tokens is not None and total.input + total.output > config.budget_tokens:
            return False
        return config.budget_dollars is None or (_dollars(total, config) or 0) <= config.budget_dollars

    def _over_budget(self, texts: Mapping[str, str]) -> str:
        tokens = _estimate_all(texts.values(), self._config)
        return (
            f"stopped: the next batch ({len(texts):,} texts, about {_amount(tokens, _dollars(tokens, self._config))}) "
            "would exceed the budget; raise it (or lower --batch-size), and the same command goes on from here"
        )


def _batches(texts: Iterable[Text], ledger: Ledger, config: TranslateConfig) -> Iterator[dict[str, str]]:
    """The texts that wait, by key, in batches that the server takes; each is noted before the next is asked for."""
    batch: dict[str, str] = {}
    size, same = 0, len(json.dumps(config.system)) + len(config.params) + _REQUEST_BYTES
    for text in texts:
        if text.key in batch or not ledger.is_waiting(text.key):
            continue
        own = len(json.dumps(text.text)) + same
        if batch and (len(batch) == config.batch_size or size + own > _MAX_BYTES):
            yield batch
            batch, size = {}, 0
        batch[text.key] = text.text.strip()
        size += own
    if batch:
        yield batch


def _request(custom_id: str, text: str, config: TranslateConfig) -> Request:
    params = {
        "model": config.model,
        "max_tokens": config.max_tokens,
        "system": config.system,
        "messages": [{"role": "user", "content": text}],
    }
    return {"custom_id": custom_id, "params": params | json.loads(config.params)}


def _estimate_all(texts: Iterable[str], config: TranslateConfig) -> Tokens:
    return sum((_estimate(text, config) for text in texts), Tokens())


def _size(batch: MessageBatch) -> int:
    counts = batch.request_counts
    return counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired


def _outcomes(name: str, results: Iterable[MessageBatchIndividualResponse]) -> dict[str, Outcome]:
    """Outcomes by key of the batch ``name``; of several results of one text, the first that is a translation."""
    found: dict[str, Outcome] = {}
    for response in results:
        prefix, _, key = response.custom_id.partition("-")
        if prefix == name and (key not in found or found[key].translation is None):
            found[key] = _outcome(key, response)
    return found


def _outcome(key: str, response: MessageBatchIndividualResponse) -> Outcome:
    result = response.result
    if result.type == "errored":
        kind = result.error.error.type
        return Outcome(None, f"errored: {kind}", kind not in _HOPELESS)
    if result.type != "succeeded":
        return Outcome(None, result.type, True)  # expired, canceled
    message, usage = result.message, result.message.usage
    cached = (usage.cache_creation_input_tokens or 0) + (usage.cache_read_input_tokens or 0)
    tokens = Tokens(usage.input_tokens + cached, usage.output_tokens)
    text = "".join(block.text for block in message.content if block.type == "text").strip()
    fault = _fault(message.stop_reason, text, key)
    return Outcome(None if fault else text, fault, False, tokens)


def _fault(stop_reason: str | None, text: str, key: str) -> str | None:
    """Why what the model wrote is no translation, or None if it is one."""
    if stop_reason == "refusal":
        return "refused"
    if stop_reason in ("max_tokens", "model_context_window_exceeded"):
        return "truncated"
    if stop_reason not in ("end_turn", "stop_sequence"):
        return f"unfinished: {stop_reason}"
    if not text:
        return "empty"
    return "untranslated" if _key_of(text) == key and len(text.split()) >= _ECHO_WORDS else None


def _join(texts: Texts, ledger: Ledger, config: TranslateConfig, note: str, origin: Mapping[str, Any]) -> Report:
    """Write the rows that have a translation, and beside them failures and manifest; earlier ones are replaced."""
    failures: dict[str, dict[str, Any]] = {}
    counts: Counter[str] = Counter()
    try:
        with _replacing(config.out) as path:
            _write_rows(path, texts, ledger, config, counts, failures)
            if not counts["translated"]:
                path.unlink()
        with _replacing(config.beside(".failures.jsonl")) as path:
            path.write_text("".join(json.dumps(failure) + "\n" for failure in failures.values()), encoding="utf-8")
        tokens = ledger.spent()
        out = config.out if counts["translated"] else None
        rows = (counts["translated"], counts["failed"], counts["left"])
        report = Report(*rows, tokens, _dollars(tokens, config), note, out)
        with _replacing(config.beside(".manifest.json")) as path:
            manifest = _manifest(report, failures.values(), config, origin)
            path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{config.out} cannot be written: {error.strerror or error}; no translation is lost"
        ) from error
    return report


def _write_rows(
    path: Path,
    texts: Texts,
    ledger: Ledger,
    config: TranslateConfig,
    counts: Counter[str],
    failures: dict[str, dict[str, Any]],
) -> None:
    """Rows of the source that have a translation to ``path``; the others are added to ``counts`` and ``failures``."""
    columns = (config.id_column or "document", config.text_column, config.translation_column)
    schema = pa.schema([(column, pa.string()) for column in columns])
    source = texts()
    with pq.ParquetWriter(path, schema) as writer:
        while chunk := list(islice(source, _ROWS)):
            fates = ledger.fates({text.key for text in chunk})
            found: list[tuple[str, str, str]] = []
            for text in chunk:
                fate = fates.get(text.key)
                if fate is not None and fate.translation is not None:
                    found.append((text.id, text.text, fate.translation))
                elif fate is None or ledger.is_waiting(text.key):
                    counts["left"] += 1
                else:
                    counts["failed"] += 1
                    failures[text.id] = {"document": text.id, "reason": fate.reason, "attempts": fate.attempts}
            counts["translated"] += len(found)
            rows = [dict(zip(columns, row, strict=True)) for row in found]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _manifest(
    report: Report, failures: Iterable[Mapping[str, Any]], config: TranslateConfig, origin: Mapping[str, Any]
) -> dict[str, Any]:
    # base_url may hold a password.
    settings = {key: value for key, value in asdict(config).items() if key not in ("out", "base_url")}
    about = {key: value for key, value in asdict(report).items() if key not in ("out", "note")}
    reasons = Counter(failure["reason"] for failure in failures)
    return {"origin": dict(origin), "settings": settings, **about, "failures": dict(reasons)}


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of ``path`` once it is whole; if it is removed meanwhile, nothing does."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        if partial.exists():
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
