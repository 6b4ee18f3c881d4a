"""The server of the page: fixed files, and one WebSocket per tab, which lives as long as its game.

A tab's game begins with its socket and is freed with it. All computation runs in one thread, one call after the
other, so that games share the model but not its recurrent state.

Nothing in a request names a file: the page's files are read once, when the server is made. Requests whose Host is not
this server's own name or whose Origin is another site are refused: pages of other sites can neither read this one nor
play on it.
"""

import ipaddress
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from anyio import CancelScope, CapacityLimiter, create_task_group, to_thread
from anyio.abc import TaskGroup
from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from canvit_gym.play.game import Game
from canvit_gym.play.page_files import read_page

PAGE_FILES = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/maps.js": ("maps.js", "text/javascript"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/page.js": ("page.js", "text/javascript"),
}
SOCKET = "/game"
MAX_MESSAGE_BYTES = 4096
MAX_GAMES = 16
"""Tabs at a time: each holds an environment."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class _Wish(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Look(_Wish):
    do: Literal["look"]
    viewpoint: tuple[float, float, float]


class Plain(_Wish):
    do: Literal["next", "restart", "stop"]


WISHES: TypeAdapter[Look | Plain] = TypeAdapter(Annotated[Look | Plain, Field(discriminator="do")])


def is_own_host(host: str | None, port: int, *, loopback: bool) -> bool:
    """Whether a Host header names this server by an address or its machine's name, not by a foreign name.

    A name that somebody else's DNS points here is refused: under it their page would have the same origin as ours.
    """
    if not host:
        return False
    try:
        parts = urlsplit(f"//{host}")
        name, given_port = parts.hostname or "", parts.port or 80
    except ValueError:
        return False
    if given_port != port:
        return False
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return not loopback and name == socket.gethostname().lower()
    return address.is_loopback or not loopback


class RequestGuard:
    """Middleware: requests with another Host or from another origin get 403, and their sockets are not opened."""

    def __init__(self, app: Any, *, port: int, loopback: bool) -> None:
        self._app, self._port, self._loopback = app, port, loopback

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host"), headers.get("origin")
        known = is_own_host(host, self._port, loopback=self._loopback)
        # A socket is opened by a script, which has an origin. Pages that a person opens have none.
        same = origin == f"http://{host}" or (origin is None and scope["type"] == "http")
        if known and same:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            text = "Refused: this request comes from another site or names another host."
            await PlainTextResponse(text, status_code=403, headers=HEADERS)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})


class GameServer:
    """Holds the games of the tabs that are open."""

    def __init__(self, new_game: Callable[[], Game]) -> None:
        self._new_game = new_game
        self._one_at_a_time = CapacityLimiter(1)
        self.num_games = 0
        """Tabs that are playing."""

    @contextmanager
    def _place(self) -> Iterator[bool]:
        """Whether there is room for one more game."""
        if self.num_games >= MAX_GAMES:
            yield False
            return
        self.num_games += 1
        try:
            yield True
        finally:
            self.num_games -= 1

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function in the computing thread, after the calls before it."""
        return await to_thread.run_sync(function, *arguments, limiter=self._one_at_a_time)

    async def serve_tab(self, websocket: WebSocket) -> None:
        """Play with one tab until it is closed."""
        await websocket.accept()
        with self._place() as free:
            if not free:
                await _send(websocket, _error(f"{MAX_GAMES} tabs are playing: close one, then reload this page"))
                await websocket.close()
                return
            game: Game = await self.run(self._new_game)
            try:
                async with create_task_group() as tasks:
                    await _Tab(self, websocket, game, tasks).play()
                    tasks.cancel_scope.cancel()
            finally:
                with CancelScope(shield=True):  # also if the server ends first
                    await self.run(game.close)


_TOLD = (ValueError, FloatingPointError, OSError)
"""Errors that the player is told, who can go on."""


class _Tab:
    """One tab's conversation."""

    def __init__(self, games: GameServer, websocket: WebSocket, game: Game, tasks: TaskGroup) -> None:
        self._run, self._websocket, self._game, self._tasks = games.run, websocket, game, tasks
        self._comparison = CancelScope()
        """The scope in which policies play the scene that ended."""

    async def play(self) -> None:
        """Run until the tab is closed."""
        try:
            await _send(self._websocket, await self._run(self._game.hello))
            await self._call(self._game.next)
            while True:
                await self._answer(await self._websocket.receive_text())
        except WebSocketDisconnect:
            pass

    async def _answer(self, text: str) -> None:
        game = self._game
        try:
            wish = WISHES.validate_json(text)
        except ValidationError:
            await _send(self._websocket, _error("the server does not understand this message"))
            return
        if isinstance(wish, Look):
            await self._call(game.look, wish.viewpoint)
        else:
            if wish.do != "stop":
                self._comparison.cancel()  # policies that have not played the scene yet are skipped
            await self._call({"next": game.next, "restart": game.restart, "stop": game.stop}[wish.do])

    async def _call(self, method: Callable[..., dict[str, Any]], *arguments: Any) -> None:
        """Call one of the game's methods, and show what the player now sees or what is wrong."""
        try:
            message = await self._run(method, *arguments)
        except _TOLD as error:
            await _send(self._websocket, _error(str(error)))
        else:
            await self._show(message)

    async def _show(self, message: dict[str, Any]) -> None:
        """Send what the player now sees; at the end of an episode also the truth and the policies' glimpses."""
        await _send(self._websocket, message)
        if self._game.problem is not None:
            await _send(self._websocket, _error(self._game.problem))
        if self._game.ended:
            await _send(self._websocket, await self._run(self._game.outcome))
            self._comparison = CancelScope()
            self._tasks.start_soon(self._compare, self._comparison)

    async def _compare(self, scope: CancelScope) -> None:
        with scope, suppress(WebSocketDisconnect):
            try:
                for name in self._game.rivals():
                    await _send(self._websocket, await self._run(self._game.rival, name))
                await _send(self._websocket, await self._run(self._game.settle))
            except _TOLD as error:  # a policy that cannot play this scene
                await _send(self._websocket, _error(str(error)))


def _error(text: str) -> dict[str, str]:
    return {"kind": "error", "text": text}


async def _send(websocket: WebSocket, message: dict[str, Any]) -> None:
    await websocket.send_text(json.dumps(message, allow_nan=False))


def make_app(games: GameServer, *, port: int, loopback: bool = True) -> FastAPI:
    """
    Args:
        games: plays with the tabs.
        port: where the server is reached.
        loopback: whether only this machine can reach it.
    """
    app = FastAPI(title="canvit_gym", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(RequestGuard, port=port, loopback=loopback)
    for path, (name, media_type) in PAGE_FILES.items():
        app.add_api_route(path, _serve(read_page(name), media_type), methods=["GET"])
    app.add_api_websocket_route(SOCKET, games.serve_tab)
    return app


def _serve(body: bytes, media_type: str) -> Callable[[Request], Any]:
    async def serve(request: Request) -> Response:
        return Response(body, media_type=media_type, headers=HEADERS)

    return serve
