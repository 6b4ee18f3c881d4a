"""The game behind the page, without a browser: messages, refusals, colours."""

import base64
import json
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, cycle, islice
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from conftest import ENV_IDS, SMALL, small
from datasets import tiny
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect
from untrained import save_untrained

import canvit_gym
from canvit_gym.config import EnvConfig
from canvit_gym.evaluation import Evaluation, evaluate
from canvit_gym.play import server as page_server
from canvit_gym.play.command import PlayConfig, command_line, listen, make_page_server
from canvit_gym.play.explore import explorer_data, load_records
from canvit_gym.play.game import Game, Tally, make_game_env
from canvit_gym.play.pictures import (
    BACKGROUND,
    CLASS_COLOURS,
    UNLABELLED,
    UNSEEN,
    UNSEEN_STRIPE,
    label_bytes,
    seen_picture,
)
from canvit_gym.play.recording import SECONDS, Played, Recorder, taken_glimpses
from canvit_gym.play.rivals import Rivals, make_rivals
from canvit_gym.policies import make_policy
from canvit_gym.replay import Replay, replay

SMALL_JSON = json.dumps(SMALL)
CORNERS = ((-0.5, -0.5, 0.5), (0.5, 0.5, 0.5), (0.75, -0.75, 0.25), (0.0, 0.0, 0.25))


def new_game(
    env_id: str = "CanViT/FashionSegmentation-v0", *, on_played: Callable[[Played], None] | None = None, **kwargs: Any
) -> Game:
    env = make_game_env(env_id, split="test", **{**small(env_id), **kwargs})
    rivals = make_rivals(("center",), env.envs.config)
    return Game(env, rivals=rivals, scenes=cycle(range(16)), on_played=on_played)


def play(game: Game, *, first: bool = True) -> dict[str, Any]:
    """To the end; the last view."""
    view = game.next() if first else game.restart()
    for viewpoint in cycle(CORNERS):
        if view["ended"]:
            return view
        view = game.look(viewpoint)
    raise AssertionError


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_game_scores_what_the_environment_scores(env_id: str) -> None:
    game = new_game(env_id)
    view = play(game)
    budget = game.hello()["budget"]
    assert view["ended"] and len(view["viewpoints"]) == budget
    env: Any = gym.make(env_id, split="test", track_score=True, **SMALL).unwrapped
    _, info = env.reset(options={"scene": view["scene"], **game._goal(view["scene"])})
    for viewpoint in view["viewpoints"][1:]:
        action = env.actions.encode(np.array([viewpoint], dtype=np.float32))[0]
        info = env.step(action)[-1]
    assert game.outcome()["curve"] == pytest.approx(info["score_curve"], abs=1e-6)
    rival = game.rival(game.rivals()[0])
    assert len(rival["curve"]) == len(rival["viewpoints"]) == len(rival["readings"]) == budget
    assert rival["curve"][0] == pytest.approx(game.outcome()["curve"][0], abs=1e-5)  # of the same goal, if there is one
    json.dumps([game.hello(), view, game.outcome(), rival, game.settle()], allow_nan=False)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_nothing_tells_the_truth_before_the_end(env_id: str) -> None:
    game = new_game(env_id)
    expected = {"kind", "begins", "scene", "practice", "ended", "viewpoints", "seen", "reading", "uncertainty"}
    view = game.next()
    for viewpoint in islice(cycle(CORNERS), game.hello()["budget"] - 1):
        assert set(view) == expected | {"goal", "allowed"}
        with pytest.raises(ValueError, match="at the end of an episode"):
            game.outcome()
        view = game.look(viewpoint)
    assert view["ended"]


def test_what_was_seen_is_sharp_where_one_looked_and_hidden_elsewhere() -> None:
    coarse, fine = np.full((8, 8, 3), 10, np.uint8), np.full((8, 8, 3), 200, np.uint8)
    corner, within = np.array([-0.5, -0.5, 0.5]), np.array([-0.75, -0.75, 0.25])
    for order in ((0, 1), (1, 0)):
        glimpses = [(corner, coarse), (within, fine)]
        viewpoints, pixels = zip(*(glimpses[i] for i in order), strict=True)
        picture = seen_picture(viewpoints, pixels, size=64)
        assert (picture[:16, :16] == 200).all() and (picture[20:32, 20:32] == 10).all()
        stripes = {tuple(pixel) for pixel in picture[32:].reshape(-1, 3).tolist()}
        assert stripes == {UNSEEN, UNSEEN_STRIPE}


def test_label_bytes_keep_what_is_no_class() -> None:
    labels = np.array([[0, 300], [255, 3]])
    assert label_bytes(labels, size=2).tolist() == [[0, 255], [255, 3]]
    assert label_bytes(labels, size=4)[0].tolist() == [0, 0, 255, 255]


def test_second_tries_are_practice_and_do_not_count() -> None:
    game = new_game()
    play(game)
    first = game.settle()
    assert first["scenes"] == 1
    assert game.restart()["practice"]
    for viewpoint in CORNERS:
        game.look(viewpoint)
    assert game.settle() == first
    assert not game.next()["practice"]


def test_a_scene_is_tried_when_its_episode_ends_though_the_policies_are_still_playing() -> None:
    """Who plays again at once knows the truth as well; the first try is what counts in the end."""
    played: list[Played] = []
    game = new_game(on_played=played.append)
    play(game)
    first = game.outcome()["curve"]
    assert game.restart()["practice"]
    for viewpoint in reversed(CORNERS):
        view = game.look(viewpoint)
    second = game.outcome()["curve"]
    assert view["ended"] and second[-1] != first[-1]
    tally = game.settle()
    assert tally["scenes"] == 1 and tally["score"] == pytest.approx(first[-1], abs=1e-6)
    assert len(played) == 1 and np.allclose(played[0].viewpoints[1:], CORNERS, atol=0.1)
    assert game.settle() == tally


def test_a_scene_that_cannot_be_read_is_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.copytree(tiny("image-folder"), root)
    min((root / "test").rglob("*.*")).write_bytes(b"rubbish")
    game = new_game("CanViT/ImageFolder-v0", root=str(root), num_scenes=None)
    assert game.next()["scene"] == 1
    game.close()


def test_the_last_view_is_shown_even_if_the_episode_cannot_be_recorded() -> None:
    def full(played: Played) -> None:
        raise OSError("no space left on device")

    game = new_game(on_played=full)
    assert game.problem is None
    assert play(game)["ended"] and game.problem == "this episode was not recorded: no space left on device"
    assert game.outcome()["curve"]
    game.next()
    assert game.problem is None


def test_a_click_near_a_tile_that_was_taken_takes_the_next_one() -> None:
    game = new_game("CanViT/FashionOrder-v0", revisit=False)
    game.next()
    for _ in range(3):
        view = game.look((-0.75, -0.75, 0.25))
    taken = np.array(view["viewpoints"])[1:]
    assert len(np.unique(taken, axis=0)) == 3 and np.abs(taken - (-0.75, -0.75, 0.25)).max() <= 1


def test_share_of_the_way_to_the_ceiling() -> None:
    tally = Tally()
    assert tally.message() == {"scenes": 0, "share": None}
    tally.add(first=0.2, last=0.5, ceiling=0.8)
    tally.add(first=0.4, last=0.4, ceiling=0.6)
    assert tally.message()["share"] == pytest.approx(0.15 / 0.4)
    flat = Tally()
    flat.add(first=0.5, last=0.7, ceiling=0.5)
    assert flat.message()["share"] is None
    unknown = Tally()
    unknown.add(first=0.5, last=0.7, ceiling=float("nan"))
    assert unknown.message()["share"] is None and unknown.message()["ceiling"] is None


def test_stopping_early() -> None:
    game = new_game(allow_stop=True)
    game.next()
    view = game.stop()
    assert view["ended"] and len(view["viewpoints"]) == 1 and not view["begins"]
    assert len(set(game.outcome()["curve"])) == 1
    with pytest.raises(ValueError, match="has ended"):
        game.look((0, 0, 0.5))
    plain = new_game()
    plain.next()
    with pytest.raises(ValueError, match="does not let one stop"):
        plain.stop()


def test_continuous_actions_and_a_first_glimpse_of_ones_own() -> None:
    game = new_game(action="continuous", first_glimpse=None, budget=2)
    assert game.hello()["actions"] == {"kind": "continuous", "min_scale": 0.125, "stop": False}
    assert game.next()["viewpoints"] == []
    view = game.look((0.3, -0.2, 0.4))
    assert view["viewpoints"][0] == pytest.approx([0.3, -0.2, 0.4], abs=1e-5)
    game.look((0.3, -0.2, 0.4))
    assert len(game.outcome()["curve"]) == 2


def test_observations_of_a_preset_are_played_with(tmp_path: Path) -> None:
    kwargs = {**SMALL, "observation_preset": "compact"}
    game = new_game(observation_preset="compact")
    config = game._env.envs.config
    assert config.map_size == 8 and {"sketch", "glimpse", "uncertainty"} <= set(config.observations)
    view = play(game)
    assert view["ended"] and view["uncertainty"]["width"] == 8
    page = make_page_server(PlayConfig(env_kwargs=json.dumps(kwargs), policies=("center",), record=tmp_path / "me.npz"))
    page.listener.close()


def test_a_trained_policy_is_a_rival_with_its_own_observations(tmp_path: Path) -> None:
    trained = EnvConfig(device="cpu", grid_centers=4, canvas_size=4, split="test", num_scenes=16)
    directory = save_untrained(tmp_path / "run" / "best", trained)
    env = make_game_env("CanViT/FashionSegmentation-v0", split="test", **SMALL)
    rivals = make_rivals((str(directory), "greedy_oracle(max_candidates=3)"), env.envs.config)
    learned, oracle = (rivals.episode(name, 3) for name in rivals.names)
    assert not learned["ceiling"] and oracle["ceiling"]
    assert rivals.ceiling(3) == oracle["curve"][-1]
    assert all(v in trained.grid_scales for _, _, v in learned["viewpoints"][1:])
    with pytest.raises(FileNotFoundError, match="no directory"):
        make_rivals(("no/such/place",), env.envs.config)


def test_policies_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """Three runs of one algorithm are three rivals, by their directories; another policy keeps its name."""
    trained = EnvConfig(device="cpu", grid_centers=4, canvas_size=4, split="test", num_scenes=16)
    runs = [str(save_untrained(tmp_path / f"seed{seed}", trained, seed=seed)) for seed in range(3)]
    config = make_game_env("CanViT/FashionSegmentation-v0", split="test", **SMALL).envs.config
    rivals = make_rivals((*runs, "center"), config)
    assert rivals.names == (*runs, "center 0.55")
    assert len({json.dumps(rivals.episode(name, 3)["viewpoints"]) for name in runs}) > 1
    with pytest.raises(ValueError, match="policies given twice: center; name each once"):
        make_rivals(("center", "random", "center"), config)


# Records


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_record_is_what_evaluation_writes(env_id: str, tmp_path: Path) -> None:
    path = tmp_path / "human.npz"
    config = make_game_env(env_id, split="test", **SMALL).envs.config
    game = new_game(env_id, on_played=Recorder(path, config, num_scenes=16).add)
    curves = []
    for _ in range(2):
        play(game)
        curves.append(game.outcome()["curve"])
    game.settle()
    play(game, first=False)  # a second try is not kept
    going_on = Recorder(path, config, num_scenes=16)
    assert going_on.scenes == {0, 1}
    budget = config.budget
    looks = np.array([(0, 0, 1), *islice(cycle(CORNERS), budget - 1)], dtype=np.float32)
    going_on.add(Played(scene=5, viewpoints=looks, seconds=tuple(range(budget))))

    record = Evaluation.load(path)
    assert record.scene.tolist() == [0, 1, 5] and record.viewpoints.shape == (3, budget, 3)
    assert record.scene_score()[:2] == pytest.approx(np.array(curves), abs=1e-6)
    policy = Replay({s: record.viewpoints[i] for i, s in enumerate((0, 1, 5))}, name="again", description="the same")
    again = evaluate(policy, config=replace(config, shard=(5, 16)))
    assert again.loss == pytest.approx(record.loss[2:])
    assert set(record.record[SECONDS]) == {"0", "1", "5"} and len(record.record[SECONDS]["0"]) == budget
    assert record.gflops == pytest.approx(again.gflops)
    assert Path.home().as_posix() not in json.dumps(record.record) and str(tmp_path) not in json.dumps(record.record)


def test_a_record_of_an_episode_that_was_stopped(tmp_path: Path) -> None:
    path = tmp_path / "human.npz"
    config = make_game_env("CanViT/FashionSegmentation-v0", split="test", allow_stop=True, **SMALL).envs.config
    game = new_game(allow_stop=True, on_played=Recorder(path, config, num_scenes=16).add)
    game.next()
    game.look(CORNERS[0])
    game.stop()
    record = Evaluation.load(path)
    assert record.scene_score()[0] == pytest.approx(np.array(game.outcome()["curve"]), abs=1e-6)
    assert (record.viewpoints[0, 1:] == record.viewpoints[0, 1]).all()


def test_what_is_shown_of_a_record_ends_where_the_player_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A glimpse that is taken again at the same place changes the reading."""
    path = tmp_path / "human.npz"
    config = make_game_env("CanViT/FashionSegmentation-v0", split="test", allow_stop=True, **SMALL).envs.config
    game = new_game(allow_stop=True, on_played=Recorder(path, config, num_scenes=16).add)
    for looks in (1, 3):
        game.next()
        for viewpoint in CORNERS[:looks]:
            game.look(viewpoint)
        game.stop()
    play(game)
    record = Evaluation.load(path)
    assert taken_glimpses(record).tolist() == [2, 4, 5]
    assert taken_glimpses(record.choose(np.array([1]))).tolist() == [4]

    scores = record.scene_score()[:, -1]
    for scene, (taken, score) in enumerate(zip((2, 4, 5), scores, strict=True)):
        title = canvit_gym.show(record, scene=scene).title
        assert f"through {taken} glimpses" in title and title.endswith(f"{score:.3f}")
    moments = replay(record.viewpoints, record.scene, config=config, taken=taken_glimpses(record))
    for steps, taken, score in zip(moments, (2, 4, 5), scores, strict=True):
        assert len(steps) == 5 and len({id(step) for step in steps}) == taken
        assert steps[-1].view.score_curve[taken] == pytest.approx(score, abs=1e-6)
    explorer_data(load_records([path]), num_scenes=16)
    assert "not the recorded" not in capsys.readouterr().err


def test_files_that_are_no_record_to_go_on_with(tmp_path: Path) -> None:
    config = make_game_env("CanViT/FashionSegmentation-v0", split="test", **SMALL).envs.config
    text = tmp_path / "text.npz"
    text.write_text("no record")
    with pytest.raises(ValueError, match="or not a saved evaluation"):
        Recorder(text, config, num_scenes=16)
    policy = tmp_path / "policy.npz"
    evaluate(make_policy("center", config=config, num_glimpses=5), config=replace(config, shard=(0, 16))).save(policy)
    with pytest.raises(ValueError, match="the record of a policy, 'center', not of people"):
        Recorder(policy, config, num_scenes=16)
    human = tmp_path / "human.npz"
    look = Played(scene=0, viewpoints=np.array([(0, 0, 1), *CORNERS], dtype=np.float32), seconds=(0,) * 5)
    Recorder(human, config, num_scenes=16).add(look)
    with pytest.raises(ValueError, match="another environment: budget is 5 there, 7 now"):
        Recorder(human, replace(config, budget=7), num_scenes=16)
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        Recorder(tmp_path / "nowhere" / "human.npz", config, num_scenes=16)


# The server


@pytest.fixture(scope="module")
def client() -> TestClient:
    page = make_page_server(PlayConfig(env_kwargs=SMALL_JSON, policies=("center",)))
    page.listener.close()
    port = int(page.address.rsplit(":", 1)[1].strip("/"))
    client = TestClient(page.server.config.app, base_url=f"http://127.0.0.1:{port}")
    client.games = page.games  # type: ignore[attr-defined]
    return client


def socket_address(client: TestClient) -> str:
    return str(client.base_url).rstrip("/").replace("http", "ws") + "/game"


def test_the_page_is_served_with_its_headers(client: TestClient) -> None:
    for path, (_, media_type) in page_server.PAGE_FILES.items():
        answer = client.get(path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(media_type)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
    for path in ("/docs", "/openapi.json", "/../pyproject.toml", "/%2e%2e/game.py", "/page/index.html", "/etc/passwd"):
        assert client.get(path).status_code == 404, path


def test_other_sites_are_refused(client: TestClient) -> None:
    assert client.get("/", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/", headers={"host": "evil.example:99999999"}).status_code == 403
    own = str(client.base_url).rstrip("/")
    for headers in ({}, {"origin": "http://evil.example"}, {"origin": "null"}, {"origin": own, "host": "evil.example"}):
        with (
            pytest.raises(WebSocketDisconnect),
            client.websocket_connect(socket_address(client), headers=headers) as tab,
        ):
            tab.receive_json()


def test_hosts() -> None:
    assert all(page_server.is_own_host(host, 80, loopback=True) for host in ("localhost", "127.0.0.1:80", "[::1]:80"))
    assert not page_server.is_own_host("192.168.0.7:80", 80, loopback=True)
    assert page_server.is_own_host("192.168.0.7:80", 80, loopback=False)
    assert page_server.is_own_host(f"{socket.gethostname()}:80", 80, loopback=False)
    for host in (None, "", "127.0.0.1:81", "evil.example:80", "127.0.0.1.evil.example", "[::1", "127.0.0.1:x"):
        assert not page_server.is_own_host(host, 80, loopback=False), host


def test_a_tab_plays_and_is_freed_when_it_closes(client: TestClient) -> None:
    games: Any = client.games  # type: ignore[attr-defined]
    headers = {"origin": str(client.base_url).rstrip("/")}
    with client.websocket_connect(socket_address(client), headers=headers) as tab:
        assert tab.receive_json()["kind"] == "hello"
        assert games.num_games == 1
        first = tab.receive_json()
        assert first["kind"] == "view"
        for bad in ("", "{", "{}", '{"do": "open", "path": "/etc/passwd"}', '{"do": "look", "viewpoint": [0, 0]}'):
            tab.send_text(bad)
            assert tab.receive_json()["kind"] == "error", bad
        for viewpoint in ([9, 9, 0.5], [0, 0, 0], [0, 0, -1]):
            tab.send_json({"do": "look", "viewpoint": viewpoint})
            assert "does not lie inside the scene" in tab.receive_json()["text"]
        tab.send_text('{"do": "look", "viewpoint": [0, 0, NaN]}')
        assert tab.receive_json()["kind"] == "error"
        for viewpoint in CORNERS:
            tab.send_json({"do": "look", "viewpoint": viewpoint})
            last = tab.receive_json()
        assert last["ended"]
        assert [tab.receive_json()["kind"] for _ in range(3)] == ["outcome", "rival", "session"]
        tab.send_json({"do": "next"})
        assert tab.receive_json()["scene"] == first["scene"] + 1
    assert games.num_games == 0


def test_who_goes_on_does_not_wait_for_the_policies(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of the slow policies may end its scene; the others never begin it."""
    begun: list[int] = []

    def slow(self: Rivals, name: str, scene: int) -> dict[str, Any]:
        begun.append(scene)
        time.sleep(0.3)
        return {"kind": "rival", "scene": scene, "name": name}

    monkeypatch.setattr(Rivals, "episode", slow)
    monkeypatch.setattr(Rivals, "names", ("one", "two", "three", "four"))
    headers = {"origin": str(client.base_url).rstrip("/")}
    with client.websocket_connect(socket_address(client), headers=headers) as tab:
        first = [tab.receive_json() for _ in range(2)][1]
        for viewpoint in CORNERS:
            tab.send_json({"do": "look", "viewpoint": viewpoint})
            tab.receive_json()
        assert tab.receive_json()["kind"] == "outcome"
        tab.send_json({"do": "next"})
        while (message := tab.receive_json())["kind"] == "rival":
            assert message["scene"] == first["scene"]
        assert message["kind"] == "view" and message["scene"] == first["scene"] + 1
        assert len(begun) < 4


def test_there_is_an_end_to_tabs(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "MAX_GAMES", 0)
    headers = {"origin": str(client.base_url).rstrip("/")}
    with client.websocket_connect(socket_address(client), headers=headers) as tab:
        assert "close one" in tab.receive_json()["text"]


# The command line


def test_what_a_user_can_mend_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ADE20K_ROOT", raising=False)
    taken = listen("127.0.0.1", 0)
    port = str(taken.getsockname()[1])
    wrong = [
        (["--port", port], "choose another --port"),
        (["--port", "70000"], "must lie in"),
        (["--host", "no.such.host.invalid"], "is no address of this machine"),
        (["--env", "CanViT/Nothing-v0"], "unknown environment"),
        (["--env", "CanViT/ADE20K-v0", "--split", "validation"], "pass root=directory"),
        (["--policies", "nobody"], "unknown policy"),
        (["--env-kwargs", "{"], "JSON object"),
        (["--budget", "1"], "budget"),
    ]
    for arguments, words in wrong:
        small = [] if {"--env-kwargs", "--env"} & set(arguments) else ["--env-kwargs", SMALL_JSON]
        with pytest.raises(SystemExit) as raised:
            command_line(["--no-open", *arguments, *small])
        text = str(raised.value)
        assert text.startswith("error: ") and words in text, (arguments, text)
    taken.close()


# Colours

_SIGHTS = {  # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def _lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of linear RGB."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = np.asarray(to_xyz) @ linear / [0.95047, 1, 1.08883]
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", _SIGHTS)
def test_class_colours_stay_apart_for_colour_blind_people(sight: str) -> None:
    seen = {}
    for colour in (*CLASS_COLOURS, BACKGROUND, UNLABELLED):
        rgb = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen[colour] = _lab(np.clip(np.asarray(_SIGHTS[sight]) @ linear, 0, 1))
    for one, other in combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 20, (sight, one, other)


def test_bytes_are_one_per_cell() -> None:
    game = new_game()
    view = game.next()
    reading = view["reading"]
    assert len(base64.b64decode(reading["bytes"])) == reading["width"] * reading["height"] == 128 * 128
