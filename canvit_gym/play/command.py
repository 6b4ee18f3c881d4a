"""`canvit-gym play`: look for yourself, in the browser, and compare yourself with policies.

The page shows what an agent sees: the glimpses taken so far, the probe's reading, and how uncertain it is. Move the
box, change its scale with the wheel, and click to take a glimpse. After the last glimpse the page shows the scene, the
truth and the scores of policies on the same scene, whose glimpses you can follow step by step.
"""

import ipaddress
import socket
import sys
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, cycle
from pathlib import Path
from typing import Any, Literal

import numpy as np
import uvicorn

from canvit_gym.command_line import PROGRAM, json_object, run_command
from canvit_gym.play.game import Game, make_game_env
from canvit_gym.play.recording import Recorder
from canvit_gym.play.rivals import make_rivals
from canvit_gym.play.server import MAX_MESSAGE_BYTES, GameServer, make_app


@dataclass(frozen=True)
class PlayConfig:
    env: str = "CanViT/FashionSegmentation-v0"
    """Environment id."""
    split: Literal["training", "validation", "test", "tuning"] = "test"
    budget: int | None = None
    """Glimpses per scene, the first included. None: the environment's own."""
    policies: tuple[str, ...] | None = None
    """Policies to be compared with: hand-coded ones such as "center(scale=0.55)"; or trained ones: shipped policies,
    such as FashionStop-v0/ppo, or run directories. None: some that support the environment."""
    env_kwargs: str | None = None
    """Further keyword arguments of the environment, as JSON."""
    shuffle: bool = False
    """Play scenes in random order instead of the split's."""
    record: Path | None = None
    """Keep the episodes in this file, for `canvit-gym benchmark --also human=FILE`: scenes, viewpoints and times, first
    tries only, nothing about the player. If the file exists, episodes are added to it."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this machine's own lets others play, without a password."""
    port: int = 0
    """0: any free one."""
    open: bool = True
    """Open the page in the browser."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        OSError: there is no such address, or the port is taken; the message says what to do.
    """
    if not 0 <= port <= 65535:
        raise OSError(f"--port must lie in [0, 65535], got {port}; 0 stands for any free one")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise OSError(f"--host {host!r} is no address of this machine ({error}); leave it out for 127.0.0.1") from error
    try:
        if sys.platform != "win32":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        listener.close()
        which = f"port {port} of {host} cannot be used" if port else f"no free port on {host}"
        raise OSError(f"{which} ({error.strerror}): choose another --port, or leave it out for any free one") from error
    return listener


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True)
class PageServer:
    """A page that is ready to be served."""

    address: str
    games: GameServer
    server: uvicorn.Server
    listener: socket.socket

    def run(self) -> None:
        """Serve until Ctrl-C, or until `server.should_exit` is set."""
        self.server.run(sockets=[self.listener])


def make_page_server(config: PlayConfig) -> PageServer:
    """Load all that the page needs and listen, so that errors are raised before an address is printed.

    Raises:
        ValueError, TypeError: an invalid value, an unknown environment or policy. OSError: no data, or no such port.
    """
    kwargs = env_kwargs(config)
    first = make_game_env(config.env, **kwargs)
    env_config, num_scenes = first.envs.config, len(first.envs.scenes)
    if not num_scenes:
        raise ValueError(f"{first.envs.scenes.name} holds no scenes; choose another split or another root")
    first.close()
    rivals = make_rivals(config.policies, env_config)
    order = np.arange(num_scenes)
    if config.shuffle:
        order = np.random.default_rng().permutation(order)
    recorder = None if config.record is None else Recorder(config.record, env_config, num_scenes=num_scenes)
    played = frozenset() if recorder is None else recorder.scenes
    unplayed = [scene for scene in order.tolist() if scene not in played]
    shared = chain(unplayed, cycle(order.tolist()))

    def new_game() -> Game:
        env = make_game_env(config.env, **kwargs)
        if recorder is None:
            return Game(env, rivals=rivals, scenes=cycle(order.tolist()))
        # Tabs take scenes from one list, so that none is played twice before all have been played.
        return Game(env, rivals=rivals, scenes=shared, on_played=recorder.add)

    listener = listen(config.host, config.port)
    port = listener.getsockname()[1]
    games = GameServer(new_game)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(games, port=port, loopback=is_loopback(config.host)),
            log_level="warning",
            ws_max_size=MAX_MESSAGE_BYTES,
            timeout_graceful_shutdown=1,
            server_header=False,
            lifespan="off",
        )
    )
    host = f"[{config.host}]" if ":" in config.host else config.host
    return PageServer(address=f"http://{host}:{port}/", games=games, server=server, listener=listener)


def env_kwargs(config: PlayConfig) -> dict[str, Any]:
    """Keyword arguments of the environment."""
    kwargs = {"split": config.split, **json_object(config.env_kwargs, option="--env-kwargs")}
    return kwargs if config.budget is None else kwargs | {"budget": config.budget}


def play(config: PlayConfig) -> None:
    """Serve the page until Ctrl-C."""
    page = make_page_server(config)
    if not is_loopback(config.host):
        print(
            f"Warning: --host {config.host} lets everybody who reaches this machine play and load its processor; "
            "there is no password.",
            file=sys.stderr,
        )
    print(f"{config.env} on {page.address} (Ctrl-C ends)", flush=True)
    if config.open:
        webbrowser.open(page.address)
    page.run()


def command_line(arguments: Sequence[str] | None = None) -> None:
    """`canvit-gym play`."""
    run_command(play, PlayConfig, description=__doc__, arguments=arguments, prog=f"{PROGRAM} play", if_interrupted="")
