"""The page of `fsanet serve` in a real browser that reaches no address but 127.0.0.1."""

import json
import logging
import struct
import sys
import urllib.error
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec

import numpy as np
import pytest
from PIL import Image
from support.browser import Browser, find_browser
from support.tiny import draw_weights, small_fsanet

from fsanet import Predictor
from fsanet.data.datasets.scenes import CLASSES, PALETTE, ProceduralScenes
from fsanet.data.images import limit_pixels
from fsanet.errors import InputError
from fsanet.report.explain import attend_from
from fsanet.report.serve import Page, ServedModel, legend_table

# Asked for without importing it, which takes seconds in each process that collects tests.
pytestmark = pytest.mark.skipif(
    find_spec("gradio") is None, reason="gradio is not installed: pip install 'fsanet[serve]'"
)
needs_browser = pytest.mark.skipif(
    find_browser() is None, reason="no Chromium on this machine: apt-get install chromium"
)


def network(seed):
    options = {"num_classes": 7, "classes": CLASSES, "palette": PALETTE, "head_channels": 16}
    model = small_fsanet(k=4, similarity="linear_softmax", zero_init=False, **options)
    draw_weights(model.head, seed)
    return model


@pytest.fixture(scope="module")
def models():
    return [ServedModel("first & <b>best</b>", network(1)), ServedModel("second", network(2))]


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    image, _ = ProceduralScenes(1, split="test")[0]
    file = tmp_path_factory.mktemp("photos") / "street <i>.png"
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file)
    return file


@pytest.fixture(scope="module")
def page(models, free_port):
    with pytest.MonkeyPatch.context() as patch:
        for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
            patch.setenv(name, "")  # put back at the end
        page = Page(models, max_file_mb=1, max_pixels=1_000_000)
        page.address = page.start(free_port)
        yield page
        page.stop()
        assert not page.files.exists()
        limit_pixels(200_000_000)


@pytest.fixture(scope="module")
def process():
    if find_browser() is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(process, page):
    """The page, opened again: nothing on it is left of another test."""
    process.open(page.address)
    return process


IMAGE = "document.querySelector('#{} img')"
READY = "(i => i && i.complete && i.naturalWidth)(" + IMAGE + ")"
TOAST = "(t => t && t.innerText)(document.querySelector('.toast-body'))"


def upload(browser, file):
    browser.wait_for("!!document.querySelector('#upload input[type=file]')")
    browser.choose_file("#upload input[type=file]", file)


@needs_browser
def test_upload_click_and_download(browser, page, models, photo):
    upload(browser, photo)
    browser.wait_for("document.querySelector('#about').innerText.includes('256 x 96 pixels')")
    assert "street" in browser.evaluate("document.querySelector('#about').innerText")
    assert not browser.evaluate("!!document.querySelector('#about i, h3 b')")  # escaped
    assert browser.wait_for(READY.format("overlay-0")) == 2 * 256  # enlarged
    browser.wait_for(READY.format("overlay-1"))
    uploads = [f for f in page.files.rglob("*") if f.is_file() and f.suffix == ".png"]
    assert all(f.read_bytes() != photo.read_bytes() for f in uploads)  # removed

    results = [Predictor(served.predictor.model)(photo) for served in models]
    for number, result in enumerate(results):
        text = browser.evaluate(f"document.querySelector('#legend-{number}').innerText")
        largest = max(result.areas(), key=result.areas().get)
        assert text.strip().startswith(largest)
        stem = f"street i-{'AB'[number]}"
        with Image.open(browser.download(f"#mask-{number}", f"{stem}_mask.png")) as mask:
            np.testing.assert_array_equal(np.asarray(mask), result.mask.numpy())
        content = json.loads(browser.download(f"#json-{number}", f"{stem}.json").read_text())
        assert {c["name"]: c["pixels"] for c in content["classes"]} == result.counts()
        assert content["k"] == 4
    assert (results[0].mask != results[1].mask).any()

    browser.click("#overlay-0 img", across=0.25, down=0.5)
    browser.wait_for(READY.format("attention-0"))
    browser.wait_for(READY.format("attention-1"))
    line = browser.wait_for("document.querySelector('#line-0').innerText")
    x, y = map(int, line.split()[1].split(","))
    assert abs(x - 64) <= 2
    assert abs(y - 48) <= 2
    image = results[0].image
    rows = attend_from(models[0].predictor.model, image, (x, y))
    assert f"weights {rows[-1].min():.2g} to {rows[-1].max():.2g}" in line
    assert f"is {results[0].classes[results[0].mask[y, x]]} and" in line
    tops = [f"document.querySelector('#attention-{n}').getBoundingClientRect().top" for n in (0, 1)]
    assert browser.evaluate(tops[0]) == browser.evaluate(tops[1])  # side by side


def slide(browser, name, value):
    """Move a slider, and wait until there is another overlay."""
    before = browser.evaluate(IMAGE.format("overlay-0") + ".src")
    browser.evaluate(f"""(() => {{
        const range = document.querySelector('#{name} input[type=range]');
        range.value = {value};
        range.dispatchEvent(new Event('input', {{bubbles: true}}));
        range.dispatchEvent(new Event('pointerup', {{bubbles: true}}));
    }})()""")
    browser.wait_for(f"(s => s && s != {before!r})({IMAGE.format('overlay-0')}.src)")


@needs_browser
def test_opacity_changes_the_overlay(browser, models, photo):
    upload(browser, photo)
    browser.wait_for(READY.format("overlay-0"))
    slide(browser, "opacity", 1)
    browser.wait_for(READY.format("overlay-0"))
    pixels = browser.evaluate(f"""(i => {{
        const canvas = document.createElement('canvas');
        [canvas.width, canvas.height] = [i.naturalWidth, i.naturalHeight];
        const context = canvas.getContext('2d');
        context.drawImage(i, 0, 0);
        return Array.from(context.getImageData(0, 0, i.naturalWidth, i.naturalHeight).data)
    }})({IMAGE.format("overlay-0")})""")
    want = Predictor(models[0].predictor.model)(photo).overlay(alpha=1, legend=False)
    want = np.asarray(want).repeat(2, 0).repeat(2, 1)  # enlarged
    got = np.array(pixels, np.uint8).reshape(*want.shape[:2], 4)[..., :3]
    np.testing.assert_array_equal(got, want)


@needs_browser
def test_another_k_needs_no_training(browser, models, photo):
    upload(browser, photo)
    browser.wait_for(READY.format("overlay-0"))
    slide(browser, "k", 1)
    content = json.loads(browser.download("#json-0", "street i-A.json").read_text())
    model = network(1)
    model.head.attention.band = type(model.head.attention.band).of(1)
    assert content["k"] == 1
    assert {c["name"]: c["pixels"] for c in content["classes"]} == Predictor(model)(photo).counts()


def bomb():
    """A PNG file of 30,000 x 30,000 pixels in 300 bytes."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@needs_browser
def test_what_is_too_large_gives_a_message(browser, page, photo, tmp_path):
    for name, content, message in [
        ("bomb.png", bomb(), "30000x30000 pixels, more than the limit of 1000000"),
        ("text.png", b"no image", "not an image in a known format"),
        ("large.png", bytes(1_500_000), "exceed the maximum allowed size of 1.0 M"),
    ]:
        file = tmp_path / name
        file.write_bytes(content)
        upload(browser, file)
        text = browser.wait_for(TOAST)
        assert message in text, text
        assert str(page.files) not in text
        browser.evaluate("document.querySelectorAll('.toast-close').forEach(b => b.click())")
        browser.wait_for("!document.querySelector('.toast-body')")
        errors = browser.evaluate("document.body.innerText.split('Error').length - 1")
        assert errors == (name == "large.png"), name  # on the upload alone, by gradio
    left = [f for f in page.files.rglob("*") if f.is_file() and f.name.startswith(("bomb", "text"))]
    assert left == []
    upload(browser, photo)  # the page goes on
    browser.wait_for(READY.format("overlay-0"))


@needs_browser
def test_nothing_is_asked_for_outside(browser, page, photo):
    upload(browser, photo)
    browser.wait_for(READY.format("overlay-0"))
    browser.wait_for("document.fonts.status == 'loaded'")
    assert len(browser.requested()) > 10
    outside = [url for url in browser.requested() if not url.startswith(page.address)]
    assert outside == []


@needs_browser
def test_nothing_is_wider_than_a_phone(browser, page, photo):
    browser.resize(500, 900)
    upload(browser, photo)
    browser.wait_for(READY.format("overlay-1"))
    browser.wait_for("document.documentElement.scrollWidth <= 500")


def test_another_host_is_refused(page):
    """A site whose name leads to 127.0.0.1 cannot read the page."""
    request = urllib.request.Request(page.address, headers={"Host": "evil.example"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(request, timeout=20)
    assert refused.value.code == 400
    with opener.open(page.address, timeout=20) as answer:
        assert b"gradio" in answer.read()


def test_limits_are_enforced_by_the_server(page):
    """Whatever the browser checks: a larger body ends with an error."""
    boundary = "x" * 20
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    body = head.encode() + bytes(1_500_000) + f"\r\n--{boundary}--\r\n".encode()
    request = urllib.request.Request(
        f"{page.address}gradio_api/upload",
        data=body,
        headers={"Content-Type": f"multipart/form-data; boundary={boundary}"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(request, timeout=20)
    assert refused.value.code == 413


# --- whatever is sent, without a browser


def send(page, path, body, kind="application/json"):
    """POST; the status and the JSON content of the answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    address = f"{page.address}gradio_api/{path}"
    request = urllib.request.Request(address, data=body, headers={"Content-Type": kind})
    try:
        with opener.open(request, timeout=20) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def call(page, session, event, data, event_data=None):
    """Call the function of an event, as the page does; its output."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{page.address}config", timeout=20) as answer:
        functions = json.load(answer)["dependencies"]
    number = next(f["id"] for f in functions if (f["targets"][0][1], len(f["inputs"])) == event)
    body = {"fn_index": number, "data": data, "session_hash": session, "event_data": event_data}
    status, _ = send(page, "queue/join", json.dumps(body | {"trigger_id": 1}).encode())
    assert status == 200
    messages = f"{page.address}gradio_api/queue/data?session_hash={session}"
    with opener.open(messages, timeout=60) as lines:
        for line in lines:
            message = json.loads(line.removeprefix(b"data: ") if line.strip() else "{}")
            if message.get("msg") == "process_completed":
                return message["output"]
    raise AssertionError


UPLOAD, BAND, OPACITY, CLICK = ("upload", 3), ("release", 3), ("release", 2), ("select", 2)


def send_photo(page, session, file):
    body = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{file.name}"\r\n\r\n'
    body = body.encode() + file.read_bytes() + b"\r\n--x--\r\n"
    _, (path,) = send(page, "upload", body, "multipart/form-data; boundary=x")
    data = {"path": path, "meta": {"_type": "gradio.FileData"}}
    return call(page, session, UPLOAD, [data, 4, 0.5])["data"]


@pytest.mark.parametrize(
    ("event", "data", "event_data", "message"),
    [
        (BAND, [None, 1.5, 0.5], None, "k=1.5: must be a whole number"),
        (BAND, [None, 10**9, 0.5], None, "64"),
        (BAND, [None, "x", 0.5], None, "x"),
        (BAND, [None, 4, float("nan")], None, "alpha is nan"),
        (OPACITY, [None, float("nan")], None, "alpha is nan"),
        (OPACITY, [None, [[]]], None, "[[]]"),
        (OPACITY, [None], None, "needed: 2, got: 1"),
        (UPLOAD, [5, 4, 0.5], None, "validation error"),
        (CLICK, [None, 4], {"index": ["a", None], "value": 0}, "must be two numbers, x and y"),
        (CLICK, [None, 4], {"index": [1, 2, 3], "value": 0}, "must be two numbers, x and y"),
        (CLICK, [None, 4], {"index": [1, 1e999], "value": 0}, "must be two numbers, x and y"),
        (CLICK, [None, 4], {"index": None, "value": 0}, "must be two numbers, x and y"),
        (CLICK, [None, 4], [], "must be integers"),
    ],
)
def test_crafted_calls_give_a_message(page, photo, capsys, event, data, event_data, message):
    session = f"{event}{data}{event_data}".translate({ord(c): "_" for c in " '\"()[]{},:."})
    send_photo(page, session, photo)
    output = call(page, session, event, data, event_data)
    assert message in output["error"]
    assert "Traceback" not in capsys.readouterr().err
    assert len(call(page, session, OPACITY, [None, 0.5])["data"]) == 8  # the page goes on


def test_a_request_that_fails_is_logged_once(page, capsys, caplog):
    with caplog.at_level(logging.ERROR):
        status, answer = send(page, "call/none", b'{"data": [1]}')
    assert status == 500
    assert "none" in answer["error"]
    (record,) = caplog.records
    assert record.message.startswith("a request failed: FnIndexInferError: ")
    assert "Traceback" not in capsys.readouterr().err


def test_two_visitors_at_once(page, models, photo, tmp_path):
    """Each gets the result of the own image, although the networks and k are shared."""
    other = tmp_path / "other.png"
    Image.fromarray(np.full((40, 30, 3), 200, np.uint8)).save(other)
    with ThreadPoolExecutor(2) as threads:
        answers = threads.map(send_photo, [page] * 2, ["one", "two"], [photo, other])
    for file, (_, _, about, _, legend, *_) in zip((photo, other), answers, strict=True):
        assert file.stem.split()[0] in about
        assert legend == legend_table(Predictor(models[0].predictor.model)(file))


def test_a_taken_port(page, models):
    port = int(page.address.rstrip("/").rpartition(":")[2])
    with pytest.raises(InputError, match=rf"port {port} of 127\.0\.0\.1 cannot be used"):
        Page(models[:1], max_file_mb=1, max_pixels=1_000_000).start(port)


def test_without_gradio(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(InputError, match=r"pip install 'fsanet\[serve\]'"):
        Page(models)


def test_the_saved_band_comes_back():
    model = network(1)
    model.head.attention.band = model.head.attention.band._replace(w1=3)
    served, saved = ServedModel("one", model), model.head.attention.band
    assert served.k == 4
    served.set_k(2)
    assert str(model.head.attention.band) == "[0:2) x [0:2)"
    served.set_k(4)
    assert model.head.attention.band == saved
    assert ServedModel("none", small_fsanet(attention=None)).k is None


def test_legend_is_escaped(photo):
    model = small_fsanet(classes=["<b>", "&", "c"])
    table = legend_table(Predictor(model)(photo))
    assert "<b>" not in table
    assert table.count("<tr>") == sum(a > 0 for a in Predictor(model)(photo).areas().values())
