"""Translation by Message Batches, against a local server with every kind of failure."""

import errno
import json
import logging
import multiprocessing
import os
import signal
import ssl
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import httpx2
import pyarrow.parquet as pq
import pytest

from sgtm.cli import main
from sgtm.config import ConfigError, TranslateConfig
from sgtm.data import message_batches
from sgtm.data import translate as module
from sgtm.data.ledger import Ledger, Tokens
from sgtm.data.tests.fake_batches import KEY, FakeServer, errored, spanish, succeeded
from sgtm.data.tinystories import source
from sgtm.data.translate import plan, translate

TEXTS = [f"Story {i}: the {'very ' * i}big dog ran home." for i in range(7)]


@pytest.fixture(scope="module")
def context():
    """Certificates take longer to load than most of these tests to run."""
    return ssl.create_default_context()


@pytest.fixture
def server(monkeypatch, context):
    fake = FakeServer()
    monkeypatch.setattr(ssl, "create_default_context", lambda *args, **settings: context)
    for name in ("ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_BASE_URL", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    yield fake
    fake.shutdown()
    fake.server_close()


def write(folder: Path, texts=TEXTS, **columns) -> str:
    file = folder / "stories.jsonl"
    rows = [{"text": text} | {name: of(i) for name, of in columns.items()} for i, text in enumerate(texts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def config(folder: Path, server: FakeServer, **settings) -> TranslateConfig:
    quick = {
        "poll_seconds": 0.005,
        "settle_seconds": 0.01,
        "backoff_seconds": 0.001,
        "backoff_limit_seconds": 0.002,
        "batch_size": 3,
        "concurrency": 2,
        "retries": 4,
    }
    return TranslateConfig(folder / "out.parquet", base_url=server.url, **quick | settings)


def rows(folder: Path) -> list[dict]:
    return pq.read_table(folder / "out.parquet").to_pylist()


def failures(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out.failures.jsonl").read_text().splitlines()]


def check_whole(folder: Path, server: FakeServer, texts=TEXTS) -> None:
    """All texts are translated, in the source's order, and none was paid for twice."""
    assert [(row["text"], row["text_es"]) for row in rows(folder)] == [(text, spanish(text)) for text in texts]
    assert server.paid == dict.fromkeys(texts, 1)
    assert failures(folder) == []
    assert not list(folder.glob("*.partial"))


# What it is for


def test_data_tinystories_reads_what_was_translated(tmp_path, server, capsys):
    texts = [f"Story {i}: a big dog ran home to see {i} cats." for i in range(60)]
    out = tmp_path / "out.parquet"
    words = ["--batch-size", "25", "--poll-seconds", "0.01", "--base-url", server.url]
    main(["data", "translate", "--source", write(tmp_path, texts), "--out", str(out), *words])
    shown = capsys.readouterr().out
    assert "60 rows, 60 different texts, 60 to translate" in shown
    assert "60 rows translated, 0 failed, 0 left" in shown
    assert "1,200 input and 600 output tokens, $0.00 taken" in shown
    check_whole(tmp_path, server, texts)
    documents = list(source(str(out), "train", {"text": "retain", "text_es": "forget"})())
    assert [d.text for d in documents if d.category == "forget"] == [spanish(text) for text in texts]
    small = ["--tokenizer", "train:300", "--context", "16", "--test-fraction", "0.2"]
    main(["data", "tinystories", "--source", str(out), "--out", str(tmp_path / "data"), *small])
    counts = json.loads((tmp_path / "data" / "manifest.json").read_text())["counts"]
    assert sum(split["forget"]["documents"] for split in counts.values()) == 60


def test_requests_say_what_the_settings_say(tmp_path, server):
    prompt = "Put {braces} into {language}."
    settings = config(
        tmp_path, server, language="French", prompt=prompt, model="m1", max_tokens=99, params='{"top_k": 1}'
    )
    translate(write(tmp_path, ["  One day. "]), "train", settings)
    (batch,) = server.batches.values()
    assert batch["requests"][0]["params"] == {
        "model": "m1",
        "max_tokens": 99,
        "system": "Put {braces} into French.",
        "messages": [{"role": "user", "content": "One day."}],
        "top_k": 1,
    }
    assert rows(tmp_path)[0]["text"] == "  One day. "


def test_columns_and_names_of_documents_are_settings(tmp_path, server):
    texts, number = [*TEXTS[:2], "bad"], iter(range(100, 200))
    server.result = lambda text, n: succeeded("", "refusal") if text == "bad" else succeeded(spanish(text))
    name = write(tmp_path, texts, story=lambda i: next(number))
    translate(name, "train", config(tmp_path, server, id_column="story", translation_column="texte"))
    assert rows(tmp_path) == [
        {"story": str(100 + i), "text": text, "texte": spanish(text)} for i, text in enumerate(texts[:2])
    ]
    assert failures(tmp_path) == [{"document": "102", "reason": "refused", "attempts": 1}]


def test_equal_texts_are_translated_once_and_empty_ones_never(tmp_path, server):
    name = write(tmp_path, [TEXTS[0], "", *TEXTS[:4], None, f" {TEXTS[1]}\n"])
    report = translate(name, "train", config(tmp_path, server))
    assert [row["text"] for row in rows(tmp_path)] == [TEXTS[0], *TEXTS[:4], f" {TEXTS[1]}\n"]
    assert [row["text_es"] for row in rows(tmp_path)] == [spanish(t) for t in (TEXTS[0], *TEXTS[:4], TEXTS[1])]
    assert server.paid == dict.fromkeys(TEXTS[:4], 1)
    assert (report.translated, report.failed, report.left) == (6, 0, 0)


def test_equal_texts_at_the_border_of_a_batch_are_translated_once(tmp_path, server):
    texts = [*TEXTS[:3], TEXTS[2], TEXTS[0], TEXTS[3]]
    translate(write(tmp_path, texts), "train", config(tmp_path, server, batch_size=3))
    assert [row["text"] for row in rows(tmp_path)] == texts
    assert server.paid == dict.fromkeys(TEXTS[:4], 1)


def test_a_second_run_sends_only_what_is_new(tmp_path, server):
    settings = config(tmp_path, server)
    translate(write(tmp_path, TEXTS[:4]), "train", settings)
    before = (tmp_path / "out.parquet").read_bytes()
    translate(write(tmp_path, TEXTS[:4]), "train", settings)
    assert (tmp_path / "out.parquet").read_bytes() == before
    assert server.calls["create"] == 2
    translate(write(tmp_path, TEXTS), "train", settings)
    check_whole(tmp_path, server)


def test_no_more_batches_than_asked_for_are_in_flight(tmp_path, server):
    seen = []
    server.looks = 3
    server.after_accepting = lambda: seen.append(sum(b["looks"] > 0 for b in server.batches.values()))
    translate(write(tmp_path), "train", config(tmp_path, server, batch_size=1, concurrency=3))
    assert max(seen) == 3
    check_whole(tmp_path, server)


# Results


def test_results_may_come_in_any_order_twice_and_with_others(tmp_path, server):
    def confuse():
        lines = list(server.batches.values())[-1]["lines"]
        other = {"custom_id": "somebody-else", "result": succeeded("wrong")}
        again = lines[0] | {"result": succeeded("a second translation")}
        lines[:] = [other, *lines[::-1], again, other]

    server.after_accepting = confuse
    report = translate(write(tmp_path), "train", config(tmp_path, server))
    check_whole(tmp_path, server)
    assert report.tokens == Tokens(20 * len(TEXTS), 10 * len(TEXTS))


ECHO = "An echo of the whole story."
FAILING = {  # text: (result, reason, attempts)
    "cut": (succeeded("ES Story", "max_tokens"), "truncated", 1),
    "long": (succeeded("ES Story", "model_context_window_exceeded"), "truncated", 1),
    "no": (succeeded("", "refusal"), "refused", 1),
    "politely no": (succeeded("I cannot do that.", "refusal"), "refused", 1),
    "blank": (succeeded(" \n"), "empty", 1),
    "nothing": (succeeded(""), "empty", 1),
    ECHO: (succeeded(f"{ECHO}\n"), "untranslated", 1),
    "paused": (succeeded("ES", "pause_turn"), "unfinished: pause_turn", 1),
    "invalid": (errored("invalid_request_error"), "errored: invalid_request_error", 1),
    "error": (errored("api_error"), "errored: api_error", 3),
    "overload": (errored("overloaded_error"), "errored: overloaded_error", 3),
    "expired": ({"type": "expired"}, "expired", 3),
    "canceled": ({"type": "canceled"}, "canceled", 3),
    "missing": (None, "missing", 3),
}


def test_failures_are_kept_apart_and_never_become_text(tmp_path, server):
    server.result = lambda text, number: FAILING[text][0] if text in FAILING else succeeded(spanish(text))
    names = iter([*range(7), *FAILING])
    report = translate(
        write(tmp_path, [*TEXTS, *FAILING], story=lambda i: f"story {next(names)}"),
        "train",
        config(tmp_path, server, id_column="story"),
    )
    assert [(row["text"], row["text_es"]) for row in rows(tmp_path)] == [(text, spanish(text)) for text in TEXTS]
    assert failures(tmp_path) == [
        {"document": f"story {text}", "reason": reason, "attempts": attempts}
        for text, (_, reason, attempts) in FAILING.items()
    ]
    assert server.paid == dict.fromkeys(TEXTS, 1) | {text: FAILING[text][2] for text in FAILING}
    assert (report.translated, report.failed, report.left) == (7, 14, 0)
    reasons = json.loads((tmp_path / "out.manifest.json").read_text())["failures"]
    assert reasons == Counter(reason for _, reason, _ in FAILING.values())


def test_no_file_beside_the_output_holds_texts_of_the_source(tmp_path, server):
    server.result = lambda text, number: succeeded("ES", "max_tokens") if number == 1 else succeeded(spanish(text))
    translate(write(tmp_path), "train", config(tmp_path, server))
    files = list(tmp_path.glob("out.*"))
    assert {file.suffix for file in files} == {".state", ".jsonl", ".json"}
    assert not any(b"big dog" in file.read_bytes() for file in files)


def test_what_failed_is_tried_again_in_new_batches(tmp_path, server):
    server.result = lambda text, number: succeeded(spanish(text)) if number == 3 else errored("api_error")
    translate(write(tmp_path), "train", config(tmp_path, server))
    assert set(server.paid.values()) == {3}
    assert [row["text_es"] for row in rows(tmp_path)] == [spanish(text) for text in TEXTS]


def test_what_failed_after_a_kill_is_tried_again(tmp_path, server):
    """All texts are in flight when the second run begins, and come back as errors."""
    server.result = lambda text, number: succeeded(spanish(text)) if number == 2 else errored("api_error")
    server.faults = {"look": ["500"] * 5}
    with pytest.raises(ConfigError, match="given up"):
        translate(write(tmp_path, TEXTS[:6]), "train", config(tmp_path, server))
    translate(write(tmp_path, TEXTS[:6]), "train", config(tmp_path, server))
    assert server.paid == dict.fromkeys(TEXTS[:6], 2)
    assert len(rows(tmp_path)) == 6


def test_failures_are_tried_again_only_when_asked(tmp_path, server):
    server.result = lambda text, number: succeeded("ES", "max_tokens") if number == 1 else succeeded(spanish(text))
    settings = config(tmp_path, server)
    assert translate(write(tmp_path), "train", settings).out is None
    assert not (tmp_path / "out.parquet").exists()
    assert translate(write(tmp_path), "train", settings).failed == 7
    assert set(server.paid.values()) == {1}
    translate(write(tmp_path), "train", replace(settings, retry_failures=True, max_tokens=9999))
    assert set(server.paid.values()) == {2}
    assert len(rows(tmp_path)) == 7
    assert failures(tmp_path) == []


def test_short_cries_may_stay_as_they_are(tmp_path, server):
    server.result = lambda text, number: succeeded(text)
    translate(write(tmp_path, ["Tom! Anna!"]), "train", config(tmp_path, server))
    assert rows(tmp_path)[0]["text_es"] == "Tom! Anna!"


# A server and a network that fail


@pytest.mark.parametrize(
    "faults",
    [
        {"create": ["429", "429", None, "429"]},
        {"list": ["529", "drop", "500"], "look": ["529", "429", "drop", "503"], "results": ["500", "429"]},
        {"results": ["cut", "short", "drop", None, "cut"]},
        {"results": ["few"]},
        {"look": ["500"] * 4},
    ],
)
def test_what_passes_is_waited_for(tmp_path, server, faults):
    server.faults = faults
    translate(write(tmp_path), "train", config(tmp_path, server))
    assert not any(faults.values())
    check_whole(tmp_path, server)


@pytest.mark.parametrize(
    "fault", ["accept 529", "accept drop", "accept 408", "accept page", "accept cut", "500", "drop", "page"]
)
def test_a_submission_without_an_answer_is_paid_for_once(tmp_path, server, fault):
    server.faults = {"create": [fault, None, fault, fault]}
    translate(write(tmp_path), "train", config(tmp_path, server))
    check_whole(tmp_path, server)
    assert server.calls["create"] == (3 if "accept" in fault else 6)


def test_a_lost_batch_is_told_from_others_of_its_size(tmp_path, server):
    def others():
        for _ in range(3):
            server.foreign(3)
        for _ in range(110):  # the list has pages of 100
            server.foreign(5)

    server.foreign(3)
    server.faults = {"create": ["accept drop", "500", "accept 500"]}
    server.after_accepting = others
    translate(write(tmp_path, TEXTS[:6]), "train", config(tmp_path, server))
    check_whole(tmp_path, server, TEXTS[:6])


def test_two_lost_batches_of_one_size_are_told_apart(tmp_path, server):
    server.looks = 4
    server.faults = {"create": ["accept drop", "accept drop"]}
    translate(write(tmp_path, TEXTS[:6]), "train", config(tmp_path, server))
    check_whole(tmp_path, server, TEXTS[:6])


def test_waiting_grows_and_heeds_the_server(tmp_path, server, monkeypatch):
    slept = []
    monkeypatch.setattr(message_batches.time, "sleep", slept.append)
    monkeypatch.setattr(message_batches.random, "uniform", lambda low, high: (low + high) / 2)
    server.faults = {"look": ["429"] * 6}
    settings = config(tmp_path, server, retries=6, backoff_seconds=1, backoff_limit_seconds=10, poll_seconds=0.5)
    translate(write(tmp_path, TEXTS[:1]), "train", settings)
    assert [s for s in slept if s != 0.5] == [0.75, 1.5, 3, 6, 7.5, 7.5]
    slept.clear()
    server.retry_after, server.faults = "77", {"create": ["429", "529"]}
    translate(write(tmp_path, TEXTS[1:2]), "train", replace(settings, out=tmp_path / "b.parquet", settle_seconds=0.5))
    assert [s for s in slept if s != 0.5] == [77, 77]


def test_retry_after_may_be_a_date():
    def error(value):
        response = httpx2.Response(429, headers={"retry-after": value}, request=httpx2.Request("GET", "http://x"))
        return message_batches.APIStatusError("no", response=response, body=None)

    soon = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 100))
    assert 90 < message_batches._retry_after(error(soon)) <= 100
    assert message_batches._retry_after(error("2.5")) == 2.5
    assert message_batches._retry_after(error("soon")) == message_batches._retry_after(RuntimeError()) == 0


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"create": ["400"]}, r"the server refuses: status 400"),
        ({"create": ["429"] * 5}, "given up after 5 tries: status 429"),
        ({"create": ["500"] * 5}, "submissions get no answer"),
        ({"list": ["500"] * 5}, "given up after 5 tries: status 500"),
        ({"results": ["cut"] * 5}, "given up after 5 tries"),
        ({"list": ["page"]}, "is base_url right"),
    ],
)
def test_a_server_that_does_not_mend_is_an_error_to_go_on_from(tmp_path, server, faults, message):
    server.faults = faults
    with pytest.raises(ConfigError, match=message):
        translate(write(tmp_path), "train", config(tmp_path, server))
    translate(write(tmp_path), "train", config(tmp_path, server))
    check_whole(tmp_path, server)


@pytest.mark.parametrize("how", ["deleted", "archived"])
def test_a_batch_that_is_gone_is_paid_for_again_only_when_asked(tmp_path, server, how):
    server.faults = {"results": ["500"] * 5}
    with pytest.raises(ConfigError, match="given up"):
        translate(write(tmp_path, TEXTS[:3]), "train", config(tmp_path, server))
    (name,) = server.batches
    if how == "deleted":
        del server.batches[name]
    else:
        server.batches[name]["archived"] = True
    with pytest.raises(ConfigError, match="--retry-failures"):
        translate(write(tmp_path, TEXTS[:3]), "train", config(tmp_path, server))
    assert set(server.paid.values()) == {1}
    translate(write(tmp_path, TEXTS[:3]), "train", config(tmp_path, server, retry_failures=True))
    assert len(rows(tmp_path)) == 3
    assert set(server.paid.values()) == {2}


# A process that is killed


def run_until(moment: int | str, name: str, settings: TranslateConfig) -> None:
    """Translate, but die by SIGKILL at the moment of this number or, first, of this name.

    Moments are the beginnings and ends of transactions, of calls to the server, and of writing files.
    """
    seen: list[str] = []

    def now(what: str) -> None:
        seen.append(what)
        if moment in (len(seen), what):
            os.kill(os.getpid(), signal.SIGKILL)

    def around(owner, attribute, name):
        plain = getattr(owner, attribute)

        def wrapped(self, *args, **kwargs):
            now(f"before {name(self, *args)}")
            result = plain(self, *args, **kwargs)
            now(f"after {name(self, *args)}")
            return result

        setattr(owner, attribute, wrapped)

    plain = Ledger.__init__

    def opened(self, *args):
        plain(self, *args)
        self._db.set_trace_callback(lambda said: now(said) if said.startswith(("BEGIN", "COMMIT")) else None)

    Ledger.__init__ = opened
    around(httpx2.Client, "send", lambda _, request: f"{request.method} {request.url.path.rsplit('/')[-1]}")
    around(pq.ParquetWriter, "write_table", lambda *_: "rows")
    around(module.os, "replace", lambda *_: "replacing")
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    translate(name, "train", settings)


@pytest.fixture(scope="module")
def spawn():
    """Starts processes that have the libraries already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sgtm.data.tests.test_translate"])
    return context.Process


def kill_and_resume(folder: Path, server: FakeServer, spawn, moment: int | str) -> bool:
    """Whether the process came to ``moment``; a later run ends what it left, without paying twice."""
    folder.mkdir()
    name, settings = write(folder, TEXTS[:5]), config(folder, server)
    child = spawn(target=run_until, args=(moment, name, settings))
    child.start()
    child.join(60)
    assert child.exitcode in (0, -signal.SIGKILL)
    translate(name, "train", settings)
    check_whole(folder, server, TEXTS[:5])
    return child.exitcode != 0


@pytest.mark.parametrize(
    "moment", ["before POST batches", "after POST batches", "after GET results", "before replacing"]
)
def test_killed_in_between(tmp_path, server, spawn, moment):
    """Before the server has a batch; before we know that it has; before its results are kept; before the output."""
    assert kill_and_resume(tmp_path / "x", server, spawn, moment)


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path, server, spawn):
    number = 1
    while kill_and_resume(tmp_path / str(number), server, spawn, number):
        assert number < 200
        server.batches.clear()
        server.paid.clear()
        number += 1
    assert number > 25  # two batches, each with three transactions and at least four calls


@pytest.mark.slow
def test_a_killed_command_goes_on(tmp_path, server):
    """The command itself, killed as soon as the server has its second batch, before the answer."""
    words = ["data", "translate", "--source", write(tmp_path), "--out", str(tmp_path / "out.parquet")]
    words += ["--batch-size", "3", "--poll-seconds", "0.01", "--settle-seconds", "0.01", "--base-url", server.url]
    child = subprocess.Popen([sys.executable, "-m", "sgtm.cli", *words], stderr=subprocess.DEVNULL)

    def kill():
        if len(server.batches) == 2 and child.poll() is None:
            child.kill()
            child.wait()

    server.after_accepting = kill
    assert child.wait(60) == -signal.SIGKILL
    assert not (tmp_path / "out.parquet").exists()
    main(words)
    check_whole(tmp_path, server)


def test_an_interrupted_run_says_how_to_go_on(tmp_path, server, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    server.looks = 3
    with monkeypatch.context() as patch:
        patch.setattr(module.time, "sleep", interrupt)
        with pytest.raises(ConfigError, match="interrupted; 2 batches go on at the server"):
            translate(write(tmp_path), "train", config(tmp_path, server))
    assert len(server.batches) == 2
    translate(write(tmp_path), "train", config(tmp_path, server))
    check_whole(tmp_path, server)


def test_two_runs_at_once_are_refused(tmp_path, server):
    translate(write(tmp_path), "train", config(tmp_path, server))
    with Ledger(tmp_path / "out.state", 3):
        with pytest.raises(ConfigError, match="another run is using it"):
            translate(write(tmp_path), "train", config(tmp_path, server))


# A disk that is full


@pytest.mark.parametrize("pages", [1, 2, 4, 8])
def test_a_full_disk_loses_and_pays_nothing_twice(tmp_path, server, monkeypatch, pages):
    texts = [f"Story {i}: a dog." for i in range(60)]
    server.result = lambda text, number: succeeded(spanish(text) + " y" * 500)
    settings, plain, room = config(tmp_path, server, batch_size=20), Ledger.__init__, {"left": pages}

    def opened(self, *args):
        plain(self, *args)
        if room["left"] is not None:
            used = self._db.execute("PRAGMA page_count").fetchone()[0]
            self._db.execute(f"PRAGMA max_page_count = {used + room['left']}")

    monkeypatch.setattr(Ledger, "__init__", opened)
    with pytest.raises(ConfigError, match="disk is full"):
        translate(write(tmp_path, texts), "train", settings)
    room["left"] = None
    translate(write(tmp_path, texts), "train", settings)
    assert len(rows(tmp_path)) == 60
    assert server.paid == dict.fromkeys(texts, 1)


def test_an_output_that_cannot_be_written_leaves_the_last_one(tmp_path, server, monkeypatch):
    translate(write(tmp_path, TEXTS[:3]), "train", config(tmp_path, server))
    before = (tmp_path / "out.parquet").read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(ConfigError, match="No space left on device; no translation is lost"):
            translate(write(tmp_path), "train", config(tmp_path, server))
    assert (tmp_path / "out.parquet").read_bytes() == before
    assert not list(tmp_path.glob("*.partial"))
    translate(write(tmp_path), "train", config(tmp_path, server))
    check_whole(tmp_path, server)


# Money


def test_the_budget_stops_cleanly_and_a_larger_one_goes_on(tmp_path, server):
    settings = config(tmp_path, server, concurrency=3, batch_size=2, input_price=1000.0, output_price=2000.0)
    each = 0.02 + 0.02  # dollars: 20 tokens read, 10 written
    in_flight, server.looks = [], 3
    server.after_accepting = lambda: in_flight.append(sum(b["looks"] > 0 for b in server.batches.values()))
    report = translate(write(tmp_path), "train", replace(settings, budget_dollars=0.4))
    assert "would exceed the budget" in report.note
    assert 0 < report.translated < 7
    assert report.dollars == pytest.approx(each * report.translated)
    assert report.dollars <= 0.4
    assert set(in_flight) == {1}  # two would be over the budget by their estimates, though not by what they take
    assert report.left == 7 - report.translated
    assert len(rows(tmp_path)) == report.translated == sum(server.paid.values())
    again = translate(write(tmp_path), "train", replace(settings, budget_dollars=0.4))
    assert again.translated == report.translated
    whole = translate(write(tmp_path), "train", replace(settings, budget_dollars=9.0))
    assert whole.note == ""
    check_whole(tmp_path, server)
    assert whole.dollars == pytest.approx(7 * each)


def test_a_budget_in_tokens_counts_what_batches_really_take(tmp_path, server):
    """The model writes 40 x what was estimated: after the first batch nothing more fits."""
    server.result = lambda text, number: succeeded(spanish(text), usage=(20, 1000))
    report = translate(write(tmp_path), "train", config(tmp_path, server, concurrency=1, budget_tokens=6000))
    assert report.translated == 3
    assert report.tokens.output == 3000
    assert "would exceed the budget" in report.note
    server.paid.clear()
    report = translate(write(tmp_path, ["Hello there."]), "train", config(tmp_path, server, budget_tokens=10))
    assert (report.translated, report.left, report.out) == (0, 1, None)
    assert not server.paid


def test_failures_that_cost_are_counted(tmp_path, server):
    server.result = lambda text, number: succeeded("ES", "max_tokens") if number == 1 else errored("api_error")
    report = translate(write(tmp_path, TEXTS[:2]), "train", config(tmp_path, server))
    assert report.tokens == Tokens(40, 20)


def test_a_dry_run_sends_and_writes_nothing(tmp_path, server, monkeypatch, capsys):
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    name = write(tmp_path, [*TEXTS, TEXTS[0], ""])
    before = set(tmp_path.iterdir())
    words = ["--source", name, "--out", str(tmp_path / "out.parquet"), "--base-url", server.url, "--dry-run"]
    main(["data", "translate", *words])
    shown = capsys.readouterr().out
    assert "8 rows, 7 different texts, 7 to translate: about" in shown
    assert "$0.0" in shown
    assert set(tmp_path.iterdir()) == before
    assert not server.calls
    settings = config(tmp_path, server)
    found = plan(name, "train", settings)
    prompt = len(settings.system) / settings.characters_per_token
    assert found.tokens.input == pytest.approx(7 * (prompt + 10) + sum(map(len, TEXTS)) / 3.5, abs=7)
    assert found.tokens.output == pytest.approx(sum(map(len, TEXTS)) / 3.5 * 1.5 + 7, abs=7)
    assert found.dollars == pytest.approx((found.tokens.input * 0.5 + found.tokens.output * 2.5) / 1e6)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    translate(write(tmp_path, TEXTS[:3]), "train", settings)
    assert plan(write(tmp_path), "train", settings).left == 4


# The key


@pytest.mark.parametrize("key", [None, "", "  \n"])
def test_no_key_is_an_error_before_anything_is_done(tmp_path, server, monkeypatch, key):
    monkeypatch.setenv("ANTHROPIC_API_KEY", key or "")
    name = write(tmp_path)
    before = set(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="set ANTHROPIC_API_KEY in the environment"):
        translate(name, "train", config(tmp_path, server))
    assert set(tmp_path.iterdir()) == before
    assert not server.calls


def test_a_key_that_cannot_be_sent_is_not_quoted(tmp_path, server, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-“quoted”-secret")
    with pytest.raises(ConfigError, match="characters that no key has") as refused:
        translate(write(tmp_path), "train", config(tmp_path, server))
    assert "secret" not in str(refused.value)


def test_the_key_is_written_nowhere(tmp_path, server, capfd, caplog):
    """Not in any file, nor in what is shown with the libraries' own debug logs on and a server that quotes the key."""
    caplog.set_level(logging.DEBUG)
    server.faults = {"create": ["429", "accept 500"], "look": ["503"]}
    server.result = lambda text, number: errored("api_error") if text == TEXTS[0] else succeeded(spanish(text))
    words = ["data", "translate", "--source", write(tmp_path), "--out", str(tmp_path / "out.parquet"), "--retries", "2"]
    words += [
        "--poll-seconds",
        "0.01",
        "--settle-seconds",
        "0.01",
        "--backoff-seconds",
        "0.01",
        "--base-url",
        server.url,
    ]
    main(words)
    server.faults = {"list": ["401"]}
    write(tmp_path, [*TEXTS, "One more."])
    with pytest.raises(SystemExit, match="status 401") as refused:
        main(words)
    shown = capfd.readouterr()
    assert "[key]" in shown.err
    assert "anthropic" in caplog.text
    assert KEY not in shown.out + shown.err + caplog.text + str(refused.value)
    files = [file for file in tmp_path.iterdir() if file.is_file()]
    assert {file.name for file in files} >= {"out.parquet", "out.state", "out.failures.jsonl", "out.manifest.json"}
    assert not any(KEY.encode() in file.read_bytes() for file in files)


# Mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "translate.batch_size=0 must be at least 1"),
        ({"batch_size": 100_001}, "100000 documents at most"),
        ({"poll_seconds": 0}, "poll_seconds=0 must be positive"),
        ({"retries": -1}, "retries=-1 must not be negative"),
        ({"model": "m", "budget_dollars": 1.0}, "needs the prices of m"),
        ({"input_price": 1.0}, "give both"),
        ({"translation_column": "text"}, "give them different names"),
        ({"params": "[1]"}, "is no JSON object"),
        ({"params": "{"}, "is no JSON object"),
        ({"text_column": "story"}, r"has no column \['story'\]; it has \['text'\]"),
        ({"base_url": "localhost:80"}, "begin with https://"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, server, settings, message):
    with pytest.raises(ConfigError, match=message):
        translate(write(tmp_path), "train", replace(config(tmp_path, server), **settings))
    assert not server.calls
    assert not list(tmp_path.glob("out.*"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": 3}\n', "must be text"),
        ('{"text": ""}\n', "has no text in text"),
        ("", "has no rows"),
        ("{bad", "cannot be read as a table"),
    ],
)
def test_sources_that_hold_no_texts(tmp_path, server, content, message):
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=message):
        translate(str(tmp_path / "x.jsonl"), "train", config(tmp_path, server))


def test_one_set_is_made_in_one_way(tmp_path, server):
    translate(write(tmp_path), "train", config(tmp_path, server))
    with pytest.raises(ConfigError, match="begun with model='claude-haiku-4-5', not 'm2'"):
        translate(write(tmp_path), "train", config(tmp_path, server, model="m2"))
    with pytest.raises(ConfigError, match="begun with prompt="):
        translate(write(tmp_path), "train", config(tmp_path, server, language="French"))


def test_files_of_others_are_left_alone(tmp_path, server):
    out = tmp_path / "out.parquet"
    out.write_bytes(b"mine")
    with pytest.raises(ConfigError, match="exists already"):
        translate(write(tmp_path), "train", config(tmp_path, server))
    (tmp_path / "out.state").write_bytes(b"mine too, and longer than a header of a hundred bytes " * 3)
    with pytest.raises(ConfigError, match="not a database; choose another --out"):
        translate(write(tmp_path), "train", config(tmp_path, server))
    assert out.read_bytes() == b"mine"
    with pytest.raises(ConfigError, match="cannot be made a folder"):
        translate(write(tmp_path), "train", replace(config(tmp_path, server), out=out / "out.parquet"))
    with pytest.raises(ConfigError, match=r"end in \.parquet"):
        translate(write(tmp_path), "train", replace(config(tmp_path, server), out=tmp_path / "out"))


# The scripts


def run_script(request, folder: Path, name: str, *words: str) -> list[str]:
    """The words that a script of ours, in an empty folder, gives to sgtm or prints."""
    (folder / "sgtm").write_text('#!/bin/sh\necho sgtm "$@"\n')
    (folder / "sgtm").chmod(0o755)
    path = request.config.rootpath / "scripts" / "data" / name
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run([path, *words], env=environment, cwd=folder, capture_output=True, text=True, check=True)
    assert {file.name for file in folder.iterdir()} == {"sgtm"}
    return done.stdout.split()[1:]


def test_the_script_that_translates(tmp_path, request, server, capsys):
    words = run_script(request, tmp_path, "translate_to_spanish.sh", "--dry-run")
    folder = tmp_path / "sources"
    folder.mkdir()
    main([*words, "--source", write(folder)])
    assert "7 to translate" in capsys.readouterr().out


def test_the_script_that_tokenizes(tmp_path, request):
    printed = run_script(request, tmp_path, "tinystories_tokenize.sh", "--dry-run", "--source", "./none.parquet")
    assert printed == run_script(request, tmp_path, "tinystories_tokenize.sh", "--source", "./none.parquet")
    with pytest.raises(SystemExit, match=r"none\.parquet does not exist"):
        main(printed)
