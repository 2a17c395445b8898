"""`lvt play`: frame by frame it gives what `lvt sample` gives, on a page that nobody else can open."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import lvt_pipeline as lvt_package
from lvt_pipeline.codes.store import open_codes
from lvt_pipeline.errors import LVTError
from lvt_pipeline.jobs.sample import sample_clips
from lvt_pipeline.jobs.settings import SampleSettings
from lvt_pipeline.models.prior.model import Prior
from lvt_pipeline.play import player as playing
from lvt_pipeline.play.player import Player
from lvt_pipeline.play.server import PlayServer
from lvt_pipeline.report.work import WorkDir
from lvt_pipeline.runs.directory import save_model_run
from tests.browser import BROWSER, Browser
from tests.toy_work import FRAMES, SIZE, PriorSettings, ToyWork, make_toy_work

Lvt = Callable[..., tuple[int, str, str]]
SETTINGS = SampleSettings(priming_frames=2, num_clips=2, top_p=0.95, seed=3)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or chrome on this machine")
SHOWN = "Number(document.getElementById('frame').textContent)"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    return make_toy_work(tmp_path_factory.mktemp("acting"), acting=True)


@pytest.fixture(scope="module")
def plain_work(tmp_path_factory: pytest.TempPathFactory) -> ToyWork:
    return make_toy_work(tmp_path_factory.mktemp("plain"))


def new_player(work: ToyWork, settings: SampleSettings = SETTINGS) -> Player:
    return Player(WorkDir(work.root), settings, device="cpu")


@contextmanager
def serving(player: Player, out: Path) -> Iterator[PlayServer]:
    server = PlayServer(player, out)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()


def ask(server: PlayServer, path: str, body: Any = None, host: str = "", method: str = "") -> tuple[int, Any]:
    """Status and answer of one request; with `body` a POST."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    headers = {"Host": host} if host else {}
    connection.request(method or ("GET" if body is None else "POST"), path, data, headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    is_json = response.getheader("Content-Type", "").startswith("application/json")
    return response.status, json.loads(content) if is_json else content


# The player ----------------------------------------------------------------------------------------------------------


def test_a_played_clip_is_the_sample_of_its_clip_seed_and_saved_actions(work: ToyWork, tmp_path: Path) -> None:
    player = new_player(work)
    clip = list(player.clips)[1]
    player.restart(clip, 7)
    steps = np.random.default_rng(0).normal(size=(8, 2)).astype(np.float32)
    for row in steps:  # beyond the window of 6 frames
        frame = player.step(row.tolist())
    video, actions = player.save(tmp_path)
    settings = replace(SETTINGS, clips=(clip,), frames=10, seed=7, actions=str(actions))
    sample_clips(work.prior, work.codes, tmp_path / "samples.zarr", settings, device="cpu")
    store = open_codes(tmp_path / "samples.zarr")
    assert np.array_equal(np.stack(player._codes), store[clip])
    own = open_codes(work.codes).array("action")[clip][:1]
    assert np.array_equal(np.load(actions), np.concatenate([own, steps]))
    shown, fps = lvt_package.read_video(video)
    assert frame.shape == (1, SIZE, SIZE, 3)
    assert (len(shown), fps) == (10, player.clip.fps)


def test_the_same_seed_under_other_actions_gives_other_frames(work: ToyWork) -> None:
    player = new_player(work)
    results = []
    for action in ([3.0, 0.0], [-3.0, 0.0], [3.0, 0.0]):
        player.restart(player.clip.id, 0)
        results.append(np.concatenate([player.step(action) for _ in range(4)]))
    assert np.array_equal(results[0], results[2])
    assert not np.array_equal(results[0], results[1])


def test_a_prior_with_several_frames_per_slice_is_played_too(work: ToyWork, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = replace(PriorSettings().model, subscale=(1, 2, 2), kernel=(1, 3, 3), block=(2, 2, 2), frames=4)
    root = tmp_path / "work"
    root.mkdir()
    for name in ("data.zarr", "frames"):
        (root / name).symlink_to(work.root / name)
    save_model_run(
        root / "runs" / "prior", "prior-run", Prior(config), PriorSettings(model=config),
        stage="train-prior", version=1, counts={},
    )  # fmt: skip
    (root / "runs" / "vqvae").symlink_to(work.vqvae)
    player = new_player(ToyWork(root))
    for _ in range(4):
        assert player.step([]).shape == (1, SIZE, SIZE, 3)
    assert player.num_frames == 6


def test_a_prior_without_actions_continues_by_itself(plain_work: ToyWork, tmp_path: Path) -> None:
    player = new_player(plain_work)
    assert player.axes == []
    player.step([])
    with pytest.raises(LVTError, match="an action of this prior is 0 finite numbers"):
        player.step([1.0])
    assert [path.suffix for path in player.save(tmp_path)] == [".mp4"]


def test_saved_clips_never_replace_each_other(work: ToyWork, tmp_path: Path) -> None:
    player = new_player(work)
    first, second = player.save(tmp_path), player.save(tmp_path)
    assert len({*first, *second}) == 4
    assert all(path.parent == tmp_path for path in [*first, *second])


@pytest.mark.parametrize("action", [[1.0], [1.0, float("nan")], [1.0, 2.0, 3.0]])
def test_wrong_actions_change_nothing(work: ToyWork, action: list[float]) -> None:
    player = new_player(work)
    with pytest.raises(LVTError, match="2 finite numbers"):
        player.step(action)
    assert player.num_frames == 2


def test_a_played_clip_has_a_longest_length(work: ToyWork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playing, "MOST_FRAMES", 3)
    player = new_player(work)
    player.step([0.0, 0.0])
    with pytest.raises(LVTError, match="at most 3 frames; save it and restart"):
        player.step([0.0, 0.0])


# The server ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(work: ToyWork, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlayServer]:
    with serving(new_player(work), tmp_path_factory.mktemp("played")) as server:
        yield server


def test_only_the_page_and_its_requests_are_served(server: PlayServer, work: ToyWork) -> None:
    token = f"/{server.token}"
    status, page = ask(server, f"{token}/")
    assert status == 200
    assert str(work.root).encode() not in page
    for path in (
        "/",
        token,
        "/other/",
        f"{token}/../",
        f"{token}/step",
        f"{token}/pipeline.toml",
        f"{token}x/",
        "/%C3%A9/",
    ):
        assert ask(server, path)[0] == 404, path
    assert ask(server, "/other/step", {"action": [0, 0]})[0] == 404
    assert ask(server, f"{token}/answer", {})[0] == 404
    assert ask(server, f"{token}/", method="PUT")[0] == 501


@pytest.mark.parametrize("host", ["evil.example", "localhost", "127.0.0.1", "127.0.0.1.evil.example:{port}"])
def test_a_request_with_another_host_is_refused(server: PlayServer, host: str) -> None:
    host = host.format(port=server.server_port)
    assert ask(server, f"/{server.token}/", host=host)[0] == 403
    assert ask(server, f"/{server.token}/step", {"action": [0, 0]}, host=host)[0] == 403


def test_only_this_machine_can_connect(server: PlayServer) -> None:
    assert server.socket.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("name", "body", "status", "message"),
    [
        ("step", b"no json", 400, "JSON object"),
        ("step", [1], 400, "JSON object"),
        ("step", {}, 400, "2 finite numbers"),
        ("step", {"action": ["1", "2"]}, 400, "2 finite numbers"),
        ("step", {"action": 5}, 400, "2 finite numbers"),
        ("step", {"action": [1]}, 400, "2 finite numbers"),
        ("step", b'{"action": [NaN, 1]}', 400, "2 finite numbers"),
        ("restart", {"clip": "../secret", "seed": 0}, 400, "not one of those"),
        ("restart", {"clip": "test/0", "seed": "0"}, 400, "whole number"),
        ("restart", {"clip": "test/0", "seed": -1}, 400, "seed"),
        ("restart", b" " * 70_000, 413, ""),
    ],
)
def test_wrong_requests_are_one_line(server: PlayServer, name: str, body: Any, status: int, message: str) -> None:
    found, answer = ask(server, f"/{server.token}/{name}", body)
    assert found == status
    assert message in str(answer)


def test_a_saved_clip_that_cannot_be_written_is_one_line(work: ToyWork, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving(new_player(work), tmp_path / "file") as server:
        status, answer = ask(server, f"/{server.token}/save", {})
    assert status == 500
    assert str(tmp_path / "file") in answer["error"]


# The command ---------------------------------------------------------------------------------------------------------


def test_ctrl_c_ends_it_cleanly(work: ToyWork) -> None:
    command = [
        sys.executable,
        "-m",
        "lvt_pipeline",
        "play",
        str(work.root),
        "--priming-frames",
        "2",
        "--clip",
        "test/0",
    ]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as run:
        assert run.stdout is not None
        address = run.stdout.readline().split()[-1]
        assert run.stdout.readline() == "Ctrl-C ends it\n"
        port, token = int(address.split(":")[2].split("/")[0]), address.split("/")[3]
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("POST", f"/{token}/step", json.dumps({"action": [0, 0]}))
        assert connection.getresponse().status == 200  # the connection stays open
        run.send_signal(signal.SIGINT)
        out, errors = run.communicate(timeout=60)
        connection.close()
    assert (run.returncode, out, errors) == (0, "ended\n", "")


def test_a_taken_port_is_one_line(work: ToyWork, lvt: Lvt) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, _, error = lvt("play", work.root, "--priming-frames", 2, "--clip", "test/0", "--port", port)
    assert (code, error) == (
        1, f"lvt: port {port} of 127.0.0.1 is in use; give another --port, or none for a free one\n"
    )  # fmt: skip


def test_what_is_missing_is_named_with_its_command(work: ToyWork, tmp_path: Path, lvt: Lvt) -> None:
    code, _, error = lvt("play", tmp_path / "nowhere")
    assert (code, error) == (1, f"lvt: {tmp_path}/nowhere does not exist; give a work directory that lvt run made\n")
    root = tmp_path / "work"
    root.mkdir()
    (root / "data.zarr").symlink_to(work.codes)
    (root / "runs").mkdir()
    (root / "runs" / "vqvae").symlink_to(work.vqvae)
    code, _, error = lvt("play", root)
    assert code == 1
    assert error.startswith(f"lvt: {root}/runs/prior does not exist; make it with: lvt train-prior ")


# The page ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@needs_browser
def test_keys_and_sliders_steer_and_clips_are_saved(work: ToyWork, browser: Browser, tmp_path: Path) -> None:
    player = new_player(work)
    with serving(player, tmp_path) as server:
        browser.visit(server.address)
        browser.wait_for(f"{SHOWN} === 2")
        browser.hold("ArrowRight")
        browser.wait_for(f"{SHOWN} >= 4")
        browser.release("ArrowRight")
        browser.run("document.getElementById('axis-1').value = -1.5")
        steered = browser.run(SHOWN)
        browser.wait_for(f"{SHOWN} >= {steered + 3}")
        browser.press("Space")
        browser.wait_for("document.getElementById('play').textContent === 'Play'")
        browser.click("#save")
        browser.wait_for("document.getElementById('message').textContent.startsWith('Saved ')")
        rows = np.load(next(tmp_path.glob("*.npy")))
        assert rows[1:3, 0] == pytest.approx(player.axes[0].high)
        assert rows[-1] == pytest.approx([player.axes[0].rest, -1.5])
        browser.run("document.getElementById('clip').selectedIndex = 1")
        browser.run("document.getElementById('clip').dispatchEvent(new Event('change'))")
        browser.wait_for(f"{SHOWN} === 2")
        assert player.clip.id == list(player.clips)[1]
        assert browser.complaints == []
        assert {request.rpartition("/")[0] + "/" for request in browser.requests} == {server.address}


@needs_browser
def test_the_page_says_that_a_prior_has_no_actions(plain_work: ToyWork, browser: Browser, tmp_path: Path) -> None:
    with serving(new_player(plain_work), tmp_path) as server:
        browser.visit(server.address, width=390, height=800)
        browser.wait_for(f"{SHOWN} === 2")
        assert "without actions" in browser.run("document.body.textContent")
        browser.click("#play")
        browser.wait_for(f"{SHOWN} >= {FRAMES}")
        assert browser.run("document.documentElement.scrollWidth <= innerWidth")
        assert browser.complaints == []


@needs_browser
def test_the_page_reports_that_the_server_has_ended(work: ToyWork, browser: Browser, tmp_path: Path) -> None:
    with serving(new_player(work), tmp_path) as server:
        browser.visit(server.address)
        browser.wait_for(f"{SHOWN} === 2")
    browser.click("#play")
    browser.wait_for("document.getElementById('message').textContent.startsWith('lvt play has ended')")
