"""The annotation page, in a headless Chromium: annotate, kill the server, go on."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from rlhf_jax.data.annotation.answers import comparisons, read_answers
from rlhf_jax.data.annotation.tasks import Candidates, make_tasks, read_tasks
from rlhf_jax.data.records import Comparison, Prompt, Response, write_records

pytest.importorskip("gradio", reason="the page needs the extra [annotate]")
sync_api = pytest.importorskip("playwright.sync_api", reason="drives the browser")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

ROOT = Path(__file__).parents[3]
ROWS = ("helpfulness", "safety", "fluency", "overall")
CHOICES = ("1", "tie", "2")
KEYS = {"1": "1", "tie": "t", "2": "2", "bad": "b"}
BOTH_BAD = (2, 3)  # of the ten tasks: one by the keyboard, one by the mouse
TORN = b'{"version": 1, "task": "task-0000'
HOSTILE = (
    "<script>document.title='owned'</script>"
    "<img src=x onerror=\"document.title='owned'\"> &lt;b&gt; {{value}} ${1+1} `x` \\n"
    "\n\n  two spaces, **no bold**, </section></div>"
)


def write_tasks(folder: Path, num_pairs: int) -> dict:
    def prompt(name):
        return Prompt(name, ({"role": "user", "content": f"{name}? {HOSTILE}"},))

    pairs = [
        Candidates(
            prompt(f"p{i}"),
            Response(f"answer a{i}"),
            Response(f"answer b{i} {HOSTILE}"),
        )
        for i in range(num_pairs)
    ]
    known = [Comparison(prompt(f"k{i}"), "answer x", "answer y", "a") for i in range(9)]
    tasks = make_tasks(pairs, known, known_share=0.2, repeat_share=0.1, seed=0)
    write_records(folder / "tasks.jsonl", tasks)
    return read_tasks(folder / "tasks.jsonl")


class Server:
    """launch/annotate.py in a process of its own."""

    def __init__(self, folder: Path, *flags: str, **environment: str):
        self.process = subprocess.Popen(
            [
                sys.executable,
                ROOT / "launch" / "annotate.py",
                f"--workdir={folder}",
                *flags,
            ],
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/bin", "HOME": str(folder), **environment},
        )
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"(http://\S+:(\d+))", line):
                break
        else:
            raise RuntimeError("".join(self.log))
        self.url, self.port = found[1], int(found[2])
        self.reader = threading.Thread(target=self._drain, daemon=True)
        self.reader.start()

    def _drain(self):
        self.log += self.process.stderr

    def kill(self):
        """As with kill -9: no handler runs, nothing is flushed."""
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serve():
    servers = []

    def start(*args, **kwargs):
        servers.append(Server(*args, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"]
        )
        yield chromium
        chromium.close()


def sign_in(page, server, name):
    page.goto(server.url)
    page.fill("#name input, #name textarea", name)
    page.click("#begin")
    shown_task(page)


def shown_task(page, after=None) -> str:
    """The task on the screen, as soon as it is another than `after`."""
    page.wait_for_function(
        "after => document.querySelector('#work [data-task]')"
        " && document.querySelector('#work [data-task]').dataset.task !== after",
        arg=after,
    )
    return page.locator("#work [data-task]").get_attribute("data-task")


def choose(page, choices: dict[str, str], *, by: str) -> None:
    for row, choice in choices.items():
        if by == "keyboard":
            page.keyboard.press(KEYS[choice])
        else:
            page.click(f"fieldset.{row} input[value='{choice}']")
        page.wait_for_selector(f"fieldset.{row} input[value='{choice}']:checked")


def save(page, *, by: str) -> None:
    if by == "keyboard":
        page.keyboard.press("Enter")
    else:
        page.click("#save")


@needs_browser
def test_ten_tasks_with_the_server_killed_in_the_middle(serve, browser, tmp_path):
    tasks = write_tasks(tmp_path, 8)
    assert len(tasks) == 11
    server = serve(tmp_path, "--port=0")
    # A page elsewhere whose name points to this machine is not served.
    rebound = urllib.request.Request(server.url, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(rebound)
    page = browser.new_page()
    sign_in(page, server, "Ann Lee")
    expected, bad = {}, []
    task = shown_task(page)
    for number in range(10):
        by = ("keyboard", "mouse")[number % 2]
        choices = {row: CHOICES[(number + i) % 3] for i, row in enumerate(ROWS)}
        if number in BOTH_BAD:
            choices["overall"] = "bad"
        if number == 9:
            page.keyboard.press("s")
            expected[task] = dict.fromkeys(ROWS, "skip")
            break
        choose(page, choices, by=by)
        if number == 5:  # in the middle of writing a line
            server.kill()
            with (tmp_path / "answers.jsonl").open("ab") as file:
                file.write(TORN)
            save(page, by=by)  # nobody listens, and the page says so
            page.wait_for_selector("text=/connection/i")
            server = serve(tmp_path, f"--port={server.port}")
            # The page finds it again, and knows whose it is.
            page.wait_for_function(
                "document.querySelector('#name input, #name textarea')?.value"
                " === 'ann lee'"
            )
            page.click("#begin")
            assert shown_task(page) == task
            choose(page, choices, by=by)
        if number == 7:  # left, and taken up again in another window
            page.close()
            page = browser.new_page()
            sign_in(page, server, "ann lee")
            assert shown_task(page) == task
            choose(page, choices, by=by)
        save(page, by=by)
        bad.extend([task] * (choices["overall"] == "bad"))
        choices = {row: c.replace("bad", "tie") for row, c in choices.items()}
        expected[task] = {row: tasks[task].seen(c) for row, c in choices.items()}
        task = shown_task(page, after=task)
    page.wait_for_function(
        "document.querySelector('#progress').innerText.includes('10')"
    )
    server.kill()

    answers = read_answers(tmp_path / "answers.jsonl")
    assert len(answers) == 10
    found = {}
    for answer in answers:
        assert answer.annotator == "ann lee"
        criteria = answer.criteria or dict.fromkeys(ROWS[:-1], "skip")
        found[answer.task] = {**criteria, "overall": answer.preference}
    assert found == expected
    assert [answer.task for answer in answers if answer.both_bad] == bad != []
    assert (tmp_path / "answers.jsonl.torn").read_bytes() == TORN + b"\n"
    assert len(comparisons(tasks, answers)) == 9


@needs_browser
def test_the_page_shows_text_asks_nobody_else_and_lets_in_by_password_alone(
    serve, browser, tmp_path
):
    tasks = write_tasks(tmp_path, 8)
    secret = "correct horse"
    server = serve(tmp_path, "--port=0", "--host=0.0.0.0", RLHF_JAX_PASSWORD=secret)
    url = f"http://127.0.0.1:{server.port}"

    # Without signing in nothing is served but the sign-in itself.
    body = json.dumps({"data": ["ann"], "fn_index": 1, "session_hash": "x"}).encode()
    for path, data in (("config", None), ("gradio_api/run/predict", body)):
        headers = {"Content-Type": "application/json"}
        call = urllib.request.Request(f"{url}/{path}", data, headers)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(call)

    for width, name in ((1280, "ann"), (390, "bob")):
        page = browser.new_page(viewport={"width": width, "height": 800})
        asked, errors = [], []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        page.on("pageerror", lambda error, errors=errors: errors.append(error))
        page.goto(url)
        for password in ("wrong password", secret):
            page.get_by_label("username").fill(name)
            page.get_by_label("password").fill(password)
            page.get_by_role("button", name="login").click()
            if password != secret:
                page.wait_for_selector("text=/incorrect|invalid/i")
        page.click("#begin")
        task = tasks[shown_task(page)]

        # Texts by models and users are shown letter by letter, never as HTML.
        (message,) = task.prompt.messages
        shown = {"#conversation": message["content"]}
        shown |= {f"#response-{n}": task.shown[n - 1] for n in (1, 2)}
        for place, text in shown.items():
            node = page.locator(f"{place} .text")
            assert node.evaluate("node => node.textContent") == text
            assert node.locator("*").count() == 0
        assert page.title() == "Compare responses"
        assert not errors

        # Nothing is fetched from elsewhere.
        ours = (url, "data:", "blob:")
        assert [address for address in asked if not address.startswith(ours)] == []

        # The page does not overflow to the right, and does not reveal the kind of task.
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        boxes = [page.locator(f"#response-{n}").bounding_box() for n in (1, 2)]
        assert (boxes[0]["y"] == boxes[1]["y"]) == (width > 700)
        assert not re.search("known|repeat_of|shown_first", page.content())

        # An answer with a choice missing is not taken.
        page.click("#save")
        page.wait_for_selector("text=Still to choose: helpfulness, safety")
        page.click("#skip")
        shown_task(page, after=task.id)
        page.close()
    answers = read_answers(tmp_path / "answers.jsonl")
    assert [(a.annotator, a.preference) for a in answers] == [
        ("ann", "skip"),
        ("bob", "skip"),
    ]
    assert secret not in "".join(server.log)


def run(folder: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [
            sys.executable,
            ROOT / "launch" / "annotate.py",
            f"--workdir={folder}",
            *flags,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"PATH": "/usr/bin", "HOME": str(folder), **environment},
    )


def refusal(*args, **kwargs) -> str:
    done = run(*args, **kwargs)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--host=0.0.0.0"], {}, "lets others reach the page, which needs a password"),
        (["--host=::"], {}, "--host=:: lets others reach the page"),
        (["--host=0.0.0.0"], {"RLHF_JAX_PASSWORD": "short"}, "must have 8 characters"),
        (["--host=0.0.0.0"], {"RLHF_JAX_PASSWORD": ""}, "must have 8 characters"),
        (["--password_file=no.txt"], {}, "There is no file no.txt"),
        (["--criteria=beauty"], {}, r"--criteria: \['beauty'\] is none of"),
        (["--guideline=no.md"], {}, "There is no file no.md"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    flags, environment, message, tmp_path
):
    write_tasks(tmp_path, 3)
    assert re.search(message, refusal(tmp_path, *flags, **environment))


def test_ctrl_c_ends_clean_while_a_page_is_open(serve, tmp_path):
    write_tasks(tmp_path, 3)
    server = serve(tmp_path, "--port=0")
    with socket.create_connection(("127.0.0.1", server.port)) as page:
        page.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert page.recv(9) == b"HTTP/1.1 "  # and the connection stays open
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(timeout=60) == 0
    server.reader.join(timeout=60)
    assert "answers.jsonl holds 0 answers" in server.log[-1]
    assert not any("Traceback" in line for line in server.log)


def test_guesses_of_the_password_are_bounded():
    from rlhf_jax.data.annotation import page

    now = [0.0]
    sign_in = page.SignIn("correct horse", clock=lambda: now[0])
    assert sign_in("ann", "correct horse") and not sign_in("", "correct horse")
    for _ in range(page.WRONG_IN_A_ROW):
        assert not sign_in("ann", "guess")
    assert not sign_in("ann", "correct horse")  # nothing is looked at for a minute
    now[0] = page.PAUSE
    assert not sign_in("ann", "\ud800")
    assert not sign_in("ann", "correct horse")
    now[0] = 2 * page.PAUSE
    assert sign_in("ann", "correct horse")
    assert not sign_in("ann", "guess") and sign_in("ann", "correct horse")


def test_no_tasks_and_a_taken_port_are_refused_in_one_line(tmp_path):
    assert "FileNotFoundError: There is no file" in refusal(tmp_path)
    write_tasks(tmp_path, 3)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Cannot listen at 127.0.0.1, port {port}: Address already in use" in (
            refusal(tmp_path, f"--port={port}")
        )
