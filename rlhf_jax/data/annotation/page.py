"""The annotation page: a guideline, a conversation, two responses, a choice.

Text by models and users is always escaped and never taken as HTML. The page's state is
in the browser (the name, the task on the screen) and on disk (the answers), so a server
that was killed continues after a restart.
"""

import hmac
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # gradio reads this on import
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
from absl import logging
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

from rlhf_jax.data.annotation.assignment import MAX_NAME, Assignment, annotator_name
from rlhf_jax.data.annotation.tasks import Task

HERE = Path(__file__).parent
WRONG_IN_A_ROW = 10  # wrong passwords in a row before sign-in pauses
PAUSE = 60.0  # seconds between two passwords during that pause
CHOICES = [("1", "1"), ("Tie", "tie"), ("2", "2")]
BOTH_BAD = "bad"  # the overall choice that is a tie of two unacceptable responses
KEYS = (
    "Keys: <kbd>1</kbd> <kbd>2</kbd> <kbd>T</kbd> choose in the marked row, "
    "<kbd>↑</kbd> <kbd>↓</kbd> go to another, <kbd>Enter</kbd> saves, "
    "<kbd>B</kbd> says overall that both are bad, <kbd>S</kbd> skips."
)
# The page loads nothing from other hosts, and injected code could not contact any.
HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: "
    "blob:; frame-ancestors 'none'; base-uri 'self'; form-action 'self'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def make_app(
    assignment: Assignment,
    *,
    guideline: str,
    criteria: Sequence[str],
    password: str | None,
    allowed_hosts: Sequence[str],
) -> FastAPI:
    """Build the web application.

    Args:
        guideline: Markdown, shown before the first task and then on demand.
        criteria: the criteria to judge besides the overall choice; may be empty.
        password: the password that every annotator needs to sign in; None for no
            password.
        allowed_hosts: the host names under which a browser may request the page; "*"
            allows any name.
    """
    app = FastAPI(openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))

    @app.middleware("http")
    async def add_headers(request, call_next):
        response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    return gr.mount_gradio_app(
        app,
        _blocks(
            assignment, guideline, [*criteria, "overall"], ask_name=password is None
        ),
        path="/",
        auth=None if password is None else SignIn(password),
        auth_message="Your name, and the password of this page. After many wrong "
        "passwords wait a minute.",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size="1kb",  # the page has no uploads
        theme=gr.themes.Default(
            font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
        ),
        css_paths=[HERE / "page.css"],
        js=(HERE / "page.js").read_text(encoding="utf-8"),
    )


class SignIn:
    """The check of a sign-in: a valid name, and the password of the page.

    After `WRONG_IN_A_ROW` wrong passwords, of all users together, only one password is
    checked every `PAUSE` seconds, until a right one is given.
    """

    def __init__(self, password: str, clock: Callable[[], float] = time.monotonic):
        self._password, self._clock = password, clock
        self._wrong, self._next = 0, -math.inf
        self._lock = threading.Lock()

    def __call__(self, name: str, given: str) -> bool:
        try:
            annotator_name(name)
        except ValueError:
            return False
        with self._lock:
            now = self._clock()
            if now < self._next:
                return False
            sent = given.encode("utf-8", "surrogatepass")
            if hmac.compare_digest(sent, self._password.encode()):
                self._wrong = 0
                return True
            self._wrong += 1
            if self._wrong >= WRONG_IN_A_ROW:
                self._next = now + PAUSE
                logging.warning(
                    "%d wrong passwords in a row: the next one is checked in %.0f s.",
                    self._wrong, PAUSE,
                )  # fmt: skip
            return False


def _blocks(
    assignment: Assignment, guideline: str, rows: list[str], *, ask_name: bool
) -> gr.Blocks:
    with gr.Blocks(title="Compare responses", analytics_enabled=False) as blocks:
        # A name is not secret; a constant key lets the name outlive a server restart.
        stored = gr.BrowserState("", storage_key="annotator", secret="annotator")
        with gr.Column(elem_id="start") as start:
            gr.Markdown(guideline, elem_classes="guideline")
            notice = gr.HTML(elem_id="notice")
            name = gr.Textbox(
                label="Your name", elem_id="name", max_length=MAX_NAME, visible=ask_name
            )
            begin = gr.Button("Start", variant="primary", elem_id="begin")
        with gr.Column(visible=False, elem_id="work") as work:
            task_id = gr.Textbox(elem_id="task")
            progress = gr.HTML(elem_id="progress")
            with gr.Accordion("Guideline", open=False):
                gr.Markdown(guideline, elem_classes="guideline")
            conversation = gr.HTML(elem_id="conversation")
            with gr.Row(elem_id="responses"):
                responses = [gr.HTML(elem_id=f"response-{number}") for number in "12"]
            with gr.Column(elem_id="choices"):
                with gr.Row(elem_id="rows"):
                    choices = [
                        gr.Radio(
                            [*CHOICES, ("Both bad", BOTH_BAD)]
                            if row == "overall"
                            else CHOICES,
                            label=row.title(),
                            elem_classes=["row", row],
                        )
                        for row in rows
                    ]
                message = gr.HTML(elem_id="message")
                with gr.Row(elem_id="buttons"):
                    gr.HTML(KEYS, elem_id="keys")
                    skip = gr.Button("Skip", elem_id="skip")
                    save = gr.Button("Save", variant="primary", elem_id="save")
        view = [start, work, notice, message, task_id, progress, conversation]
        view += [*responses, *choices]

        def next_view(annotator: str, note: str = "") -> dict:
            task = assignment.next_task(annotator)
            own, done, total = assignment.progress(annotator)
            counts = f"{annotator}: {own} done · {done} of {total} answers in all"
            if task is None:
                note = f"{note} Nothing is left for you now. Thank you! {counts}."
                return {
                    start: gr.Column(visible=True),
                    work: gr.Column(visible=False),
                    notice: escape(note),
                }
            return {
                start: gr.Column(visible=False),
                work: gr.Column(visible=True),
                message: escape(note),
                task_id: task.id,
                progress: _progress_bar(counts, done, total),
                conversation: _conversation(task),
                responses[0]: _block("response", "Response 1", task.shown[0]),
                responses[1]: _block("response", "Response 2", task.shown[1]),
                **dict.fromkeys(choices),
            }

        def on_load(stored_name: str):
            return stored_name or gr.skip()  # a name typed in the meantime stays

        def on_start(name: str, request: gr.Request) -> dict:
            try:
                annotator = annotator_name(request.username or name)
            except ValueError as error:
                return {notice: escape(str(error))}
            return {stored: annotator, **next_view(annotator)}

        def on_save(request: gr.Request, name: str, task: str, *chosen: str) -> dict:
            missing = [r for r, c in zip(rows, chosen, strict=True) if c is None]
            if missing:
                return {message: escape(f"Still to choose: {', '.join(missing)}.")}
            both_bad = chosen[-1] == BOTH_BAD
            chosen = (*chosen[:-1], "tie" if both_bad else chosen[-1])
            *criteria, overall = map(assignment.task(task).seen, chosen)
            criteria = dict(zip(rows[:-1], criteria, strict=True)) or None
            return take(request, name, task, overall, criteria, both_bad)

        def on_skip(name: str, task: str, request: gr.Request) -> dict:
            return take(request, name, task, "skip")

        def take(
            request, name, task, preference, criteria=None, both_bad=False
        ) -> dict:
            annotator = annotator_name(request.username or name)
            try:
                saved = assignment.save(
                    task, annotator, preference, criteria, both_bad=both_bad
                )
            except OSError as error:
                note = f"NOT SAVED: the server could not write ({error.strerror})."
                return {message: escape(f"{note} Try again, or tell its operator.")}
            late = (
                "The last answer was not saved: the task had been answered before, by "
                "you in another window or by somebody else."
            )
            return next_view(annotator, "" if saved else late)

        # Without the queue an event is one request, which needs no session.
        event = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}
        blocks.load(on_load, stored, name, **event)
        gr.on([begin.click, name.submit], on_start, name, [stored, *view], **event)
        save.click(on_save, [stored, task_id, *choices], view, **event)
        skip.click(on_skip, [stored, task_id], view, **event)
    return blocks


def _conversation(task: Task) -> str:
    return f'<div data-task="{escape(task.id)}"></div>' + "".join(
        _block(m["role"], m["role"].title(), m["content"]) for m in task.prompt.messages
    )


def _block(kind: str, title: str, text: str) -> str:
    return (
        f'<section class="card {kind}"><h3>{title}</h3>'
        f'<div class="text" dir="auto">{escape(text)}</div></section>'
    )


def _progress_bar(counts: str, done: int, total: int) -> str:
    return f'<progress value="{done}" max="{total}"></progress> {escape(counts)}'
