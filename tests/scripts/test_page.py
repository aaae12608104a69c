"""The page: its JavaScript computes what the package does, and a browser runs it without errors."""

import ast
import json
import math
import re
import shutil
import subprocess
import time

import pytest
import torch
from chromium import Chromium
from conftest import DIGITS_MODEL, ROOT, random_model, run
from PIL import Image

from sphere_mini import SphereEncoder, generate, reconstruct, spherify
from sphere_mini.data.images import to_unit_range
from sphere_mini.sampling import refine
from sphere_mini.sphere import angle_between, perturb, slerp

PARTS = ROOT / "sphere_mini" / "page"
MODELS = ("digits", "fashion_mnist", "conv")
PANELS = ("explore", "angle", "loop", "between", "draw")
CLOSE = 1e-4  # in [0, 1]
GUIDANCE = 2.5


def write_page(model, path):
    done = run("sample.py", model, "page", "--out", path, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    assert str(path) in done.stdout
    return path


@pytest.fixture(scope="session")
def pages(tmp_path_factory):
    """Three models' folders and pages: two that ship, and one without classes and with convs."""
    folder = tmp_path_factory.mktemp("pages")
    fields = dict(num_classes=0, pixel_head="conv", mixer_depth=1, num_heads=4, depth=2)
    random_model(**fields).save_pretrained(folder / "conv")
    models = [ROOT / "checkpoints" / name for name in MODELS[:2]] + [folder / "conv"]
    return {path.name: (path, write_page(path, folder / f"{path.name}.html")) for path in models}


def tool(*names):
    """The path of a program that is not ours; the test is skipped where there is none."""
    found = [path for name in names if (path := shutil.which(name))]
    if not found:
        pytest.skip(f"{names[0]} is not installed")
    return found[0]


def in_halves(folder):
    """The model as its page has it."""
    model = SphereEncoder.from_pretrained(folder)
    model.load_state_dict({name: w.half().float() for name, w in model.state_dict().items()})
    return model


def question_for(model):
    """What both sides compute with: a picture, a latent, noises, a label, shares of classes."""
    torch.manual_seed(0)
    config = model.config
    z, e, *steps = torch.randn(6, 1, *config.latent_shape)
    x = torch.rand(1, 3, config.image_size, config.image_size) * 2 - 1
    y = 3 if config.num_classes else None
    shares = torch.rand(1, config.num_classes + 1)
    return x, z, e, torch.stack(steps), y, shares


@torch.no_grad()
def expected(model):
    """What the JavaScript should answer."""
    x, z, e, steps, label, shares = question_for(model)
    y = None if label is None else torch.tensor([label])
    v = spherify(z)
    options = dict(num_steps=5, guidance=GUIDANCE, share_noise=False, every_step=True)
    options |= dict(noise=z, step_noise=steps)
    places = ("latent", "pixel", "both")
    return {
        "spherify": v,
        "perturb": perturb(v, model.config.sigma_max, e),
        "slerp": slerp(v, spherify(e), 0.3),
        "angle": torch.deg2rad(angle_between(v, e)),
        "encode": spherify(model.encode(x, y)),
        "decode": to_unit_range(torch.cat([model.decode(v, y), model.decode(v)])),
        "mixed": to_unit_range(model.decode(v, shares)),
        "refine": to_unit_range(torch.cat(list(refine(model, x, y, steps)))),
        "decayed": to_unit_range(torch.cat(list(refine(model, x, y, steps, 0.5, decay=True)))),
        "guided": torch.cat([generate(model, y, guidance_place=p, **options) for p in places]),
        "reconstruct": reconstruct(model, to_unit_range(x)),
    }


def answer_of(page, model):
    """What the JavaScript computes in node."""
    x, z, e, steps, y, shares = question_for(model)
    given = {"x": x, "z": z, "e": e, "shares": shares}
    given = {name: tensor.flatten().tolist() for name, tensor in given.items()}
    given |= {"stepNoise": steps.flatten(1).tolist(), "y": y, "guidance": GUIDANCE}
    question = page.with_suffix(".json")
    question.write_text(json.dumps(given))
    driver = ROOT / "tests" / "page_in_node.js"
    command = [tool("node", "nodejs"), driver, PARTS / "sphere.js", page, question]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", MODELS)
def test_javascript_computes_what_the_package_does(pages, name):
    folder, page = pages[name]
    model = in_halves(folder)
    answer = answer_of(page, model)
    for what, wanted in expected(model).items():
        got = torch.tensor(answer[what]).flatten()
        assert got.shape == wanted.flatten().shape
        difference = (got - wanted.flatten()).abs().max().item()
        print(f"{name}: {what} differs by {difference:.1e}")
        assert difference < CLOSE, what


def test_twins_are_there():
    """Each function of the JavaScript that names its twin in Python names one that exists."""
    twins = set()
    for path in PARTS.glob("*.js"):
        twins |= set(re.findall(r"// Twin: (\w+) in ([\w/]+\.py)", path.read_text()))
    assert len(twins) > 30
    for name, file in twins:
        path = ROOT / file if file.startswith("notebooks/") else ROOT / "sphere_mini" / file
        tree = ast.walk(ast.parse(path.read_text()))
        assert name in {node.name for node in tree if hasattr(node, "name")}, (name, file)


def test_lines_are_short_and_nothing_is_fetched():
    for path in PARTS.iterdir():
        text = path.read_text()
        assert max(map(len, text.splitlines())) <= 100, path
        assert not re.search(r"https?:|\bsrc=|url\(|fetch\(|XMLHttp|import[ (]|@import", text), path
    html = (PARTS / "page.html").read_text()
    assert "default-src 'none'" in html
    links = re.findall(r'<a href="\.\./([^"]+)"', html)  # from playground/ and from pictures/
    assert len(links) == len(PANELS) and all((ROOT / link).is_file() for link in links)


@pytest.mark.parametrize("name", MODELS[:2])
def test_the_shipped_pages_are_of_the_shipped_models(name):
    html = (ROOT / "playground" / f"{name}.html").read_text()
    model = SphereEncoder.from_pretrained(ROOT / "checkpoints" / name)
    assert f'"hash": "{model.weights_hash()}"' in html  # else make it anew, by sample.py's `page`
    assert f'"source": "{name}"' in html
    for path in PARTS.glob("*.js"):
        assert path.read_text() in html, path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium = Chromium(tool("chromium", "chromium-browser"), tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


def open_page(browser, page, state=""):
    """Open a page, with nothing noted against it so far."""
    browser.errors.clear()
    browser.requests.clear()
    browser.look_at(1280, 720)
    browser.open(f"{page.as_uri()}#{state}")


def check_quiet(browser, page):
    """No error and no request since the page was opened."""
    assert browser.errors == []
    assert {address.split("#")[0] for address in browser.requests} <= {page.as_uri(), "about:blank"}


def pixels(browser, canvas):
    return browser.run(f"document.getElementById('{canvas}').toDataURL()")


def middle_of(browser, element):
    script = f"document.getElementById('{element}').getBoundingClientRect()"
    box = browser.run(f"(({{x, y, width, height}}) => [x, y, width, height])({script})")
    return box[0] + box[2] / 2, box[1] + box[3] / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits", "conv"])
def test_everything_can_be_pressed(pages, browser, name, tmp_path):
    _, page = pages[name]
    for panel in PANELS:
        open_page(browser, page, f"panel={panel}")
        visible = "[...document.querySelectorAll('button, input, summary')]"
        visible += ".filter((one) => one.offsetParent && one.type !== 'file')"
        count = browser.run(f"{visible}.length")
        assert count > 8
        for k in range(count):
            if browser.run(f"{visible}[{k}].parentElement.id === 'tabs'"):
                continue
            change = "one.type === 'range' ? (one.value = one.max) : one.click()"
            browser.run(f"((one) => {{ {change} }})({visible}[{k}])")
            browser.run(f"{visible}[{k}].dispatchEvent(new Event('input', {{bubbles: true}}))")
        browser.wait()
        browser.save_screenshot(tmp_path / f"{panel}.png")
        assert (tmp_path / f"{panel}.png").stat().st_size > 10_000
        check_quiet(browser, page)
        assert browser.run(f"!document.getElementById('{panel}').hidden")


@pytest.mark.slow
def test_the_point_can_be_dragged(pages, browser):
    _, page = pages["digits"]
    open_page(browser, page, "longitude=30&latitude=25")  # in the middle of the globe
    middle = middle_of(browser, "explore-globe")
    before = pixels(browser, "explore-picture")
    browser.drag(middle, (middle[0] + 80, middle[1] - 40))
    browser.wait()
    assert pixels(browser, "explore-picture") != before
    place = browser.run("[state.longitude, state.latitude]")
    assert place[0] > 45 and place[1] > 30
    globe = pixels(browser, "explore-globe")
    browser.drag((middle[0] - 60, middle[1] + 60), (middle[0], middle[1] + 60))  # turns it
    assert pixels(browser, "explore-globe") != globe
    assert browser.run("[state.longitude, state.latitude]") == place
    check_quiet(browser, page)


def text_of(browser, element):
    return browser.run(f"document.getElementById('{element}').innerText")


@pytest.mark.slow
def test_a_small_picture_can_be_picked(pages, browser):
    _, page = pages["digits"]
    open_page(browser, page, "longitude=60&latitude=50")
    assert text_of(browser, "explore-text").startswith("nearest: ")
    assert re.match(r"The 5 nearest of all 100; \d are of", text_of(browser, "explore-kinds"))
    tile = "seenTiles(exploreGlobe.shown(), exploreGlobe.view).at(-1)"  # the uppermost
    box = "document.getElementById('explore-globe').getBoundingClientRect()"
    at = f"(({{x, y, width}}, [right, up]) => [x + width / 2 + right, y + width / 2 - up])({box}, "
    at = browser.run(f"{at}{tile}.at.map((one) => one * globeRadius({box}.width)))")
    for wanted in (browser.run(f"{tile}.k"), -1):
        browser.drag(at, at, steps=1)
        browser.wait()
        assert browser.run("state.picked") == wanted
        assert text_of(browser, "explore-text").startswith("picked: ") == (wanted >= 0)
    browser.run("document.querySelectorAll('#explore-five canvas')[2].click()")
    assert browser.run("state.picked") >= 0
    check_quiet(browser, page)


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["", "&one=random&two=random", "&one=1&two=0&seed=3"])
@pytest.mark.parametrize("name", MODELS)
def test_the_dial_shows_the_true_angle(pages, browser, name, ends):
    _, page = pages[name]
    open_page(browser, page, f"panel=between&way=20{ends}")
    browser.run("drawPlane = (...args) => (window.drawn = args)")
    browser.run("update({way: 30})")
    browser.wait()
    _, _, (slerp_point, lerp_point), options = browser.run("drawn")
    whole = math.radians(options["whole"])
    assert slerp_point["degrees"] == pytest.approx(0.3 * options["whole"])
    turned, radius = math.radians(lerp_point["degrees"]), lerp_point["radius"]
    x, y = radius * math.cos(turned), radius * math.sin(turned)
    assert (x, y) == pytest.approx((0.7 + 0.3 * math.cos(whole), 0.3 * math.sin(whole)), abs=1e-3)
    assert f"{options['whole']:.0f}° apart" in text_of(browser, "between-text")
    assert re.search(r"by \d+(\.\d)?% ", text_of(browser, "between-most"))
    check_quiet(browser, page)


@pytest.mark.slow
def test_the_angle_says_whose_point_is_the_nearest(pages, browser):
    _, page = pages["digits"]
    for angle, words in ((20, "the old picture (5 of 5)"), (90, "no longer says")):
        open_page(browser, page, f"panel=angle&seed=4&angle={angle}")
        text = text_of(browser, "angle-text")
        assert words in text and "nearly, not exactly, perpendicular" in text
        assert not re.search(r"[-−]\d", text)  # of a point nothing less than nothing is kept
        captions = "[...document.querySelectorAll('#angle-pictures figcaption')]"
        captions = browser.run(f"{captions}.map((one) => one.innerText)")
        assert captions[0] == "the old picture"
        pattern = r"\d+°, near the old" if angle < 90 else r"\d+°, near \d"
        assert all(re.fullmatch(pattern, one) for one in captions[1:]), captions
    check_quiet(browser, page)


@pytest.mark.slow
def test_rounds_tell_their_angle(pages, browser):
    _, page = pages["digits"]
    captions = "[...document.querySelectorAll('#loop-strip span')].map((one) => one.innerText)"
    for start in ("random", "picture"):
        open_page(browser, page, f"panel=loop&start={start}&steps=3&schedule=decay")
        first, *rounds = browser.run(captions)
        assert first == "start"
        assert [one.split("\n")[0] for one in rounds] == ["round 1: 68°", "round 2: 51°"]
        assert re.fullmatch(r"last [\d.]+%\nstart [\d.]+%", rounds[1].split("\n", 1)[1])
    assert browser.run("document.querySelector('[data-state=guidance]').disabled")
    browser.run("update({class: 3, schedule: 'fixed'})")
    browser.wait()
    assert not browser.run("document.querySelector('[data-state=guidance]').disabled")
    assert browser.run(captions)[2].startswith("round 2: 75°")
    check_quiet(browser, page)


@pytest.mark.slow
def test_each_press_takes_another_real_picture(pages, browser):
    _, page = pages["digits"]
    open_page(browser, page, "panel=draw")
    shown = []
    for _ in range(3):
        browser.run("document.getElementById('take-real').click()")
        browser.wait()
        shown.append(pixels(browser, "draw-own"))
    assert len(set(shown)) == 3
    check_quiet(browser, page)


@pytest.mark.slow
def test_it_can_be_used_by_keyboard(pages, browser):
    _, page = pages["digits"]
    open_page(browser, page)
    browser.run("document.getElementById('explore-globe').focus()")
    before = browser.run("state.longitude")
    for _ in range(3):
        browser.key("ArrowRight")
    assert browser.run("state.longitude") > before + 5
    browser.run("document.querySelector('[data-panel=draw]').focus()")
    browser.key(" ", " ")
    browser.wait()
    assert browser.run("state.panel") == "draw"
    before = pixels(browser, "draw-again")
    browser.run("document.getElementById('draw-sheet').focus()")
    browser.key("ArrowUp")
    browser.key(" ", " ")
    browser.wait()
    assert pixels(browser, "draw-again") != before
    check_quiet(browser, page)


@pytest.mark.slow
def test_a_drawing_and_a_file_are_encoded(pages, browser, tmp_path):
    _, page = pages["digits"]
    open_page(browser, page, "panel=draw&brush=dark")
    shown = [pixels(browser, "draw-again")]
    x, y = middle_of(browser, "draw-sheet")
    browser.drag((x - 100, y), (x + 100, y))
    browser.wait()
    shown.append(pixels(browser, "draw-again"))
    Image.new("RGB", (40, 30), "white").save(tmp_path / "white.png")
    (tmp_path / "words.txt").write_text("not a picture")
    browser.choose_file("file", tmp_path / "white.png")
    browser.wait()
    shown.append(pixels(browser, "draw-again"))
    assert browser.run("Math.min(...sheet.x)") > 0.99
    assert len(set(shown)) == 3 and browser.run("document.getElementById('trouble').hidden")
    browser.choose_file("file", tmp_path / "words.txt")
    assert "words.txt cannot be read" in browser.run("document.body.innerText")
    check_quiet(browser, page)


@pytest.mark.slow
def test_a_link_shows_the_same(pages, browser):
    _, page = pages["digits"]
    loop = "panel=loop&seed=7&class=3&steps=5&guidance=2&noise=fresh&schedule=decay"
    open_page(browser, page, loop)
    time.sleep(0.3)  # the address is written a moment after the last change
    browser.run("update({seed: 8})")
    browser.run("new Promise((done) => setTimeout(done, 400))")
    browser.wait()
    link = browser.run("location.href")
    strip = "[...document.querySelectorAll('#loop-strip canvas')].map((c) => c.toDataURL()).join()"
    first = browser.run(strip)
    open_page(browser, page)
    browser.open(link)
    assert browser.run(strip) == first and first.count("data:") == 5
    assert browser.run("state.schedule") == "decay"
    open_page(browser, page, "panel=moon&seed=-1&class=99&steps=1e9&angle=x&latitude=")
    assert browser.run("state.panel + state.seed + state.class + state.steps") == "explore1none1"
    check_quiet(browser, page)


@pytest.mark.slow
def test_it_reads_on_a_phone_and_from_afar(pages, browser):
    _, page = pages["fashion_mnist"]
    smallest = "Math.min(...[...document.querySelectorAll('body *')]"
    smallest += ".map((one) => parseFloat(getComputedStyle(one).fontSize)))"
    grounds = []
    edges = "['explore-picture', 'explore-globe', 'classes'].map((id) => "
    edges += "document.getElementById(id).getBoundingClientRect())"
    edges += ".flatMap(({top, bottom}) => [top, bottom])"
    for k, panel in enumerate(PANELS):
        open_page(browser, page, f"panel={panel}")
        browser.look_at(390, 844, dark=k % 2 > 0, phone=True)
        browser.wait()
        assert browser.run("document.documentElement.scrollWidth") <= 390, panel
        assert browser.run(smallest) >= 18
        if panel == "explore":  # the picture is above the globe, and the classes are in lines
            _, picture_end, globe, _, classes, classes_end = browser.run(edges)
            assert picture_end < globe < picture_end + 100 and classes_end > classes + 80
        grounds.append(browser.run("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] == "rgb(255, 255, 255)" and len(set(grounds)) == 2
    check_quiet(browser, page)


@pytest.mark.slow
def test_names_are_shown_as_text(browser, tmp_path):
    names = ("<script>alert(1)</script>", "</script><img src=x onerror=alert(2)>", "{{tensors}}")
    folder = tmp_path / "<b>model"
    random_model(num_classes=3, class_names=names).save_pretrained(folder)
    page = write_page(folder, tmp_path / "page.html")
    assert "<script>alert" not in page.read_text() and "<img" not in page.read_text()
    open_page(browser, page, "panel=draw&class=1")
    for name in names:
        assert name in browser.run("document.getElementById('classes').innerText")
    assert browser.run("document.title").startswith("<b>model:")
    assert browser.run("document.querySelectorAll('img, h1 b').length") == 0
    assert "generated pictures" in browser.run("document.body.innerText")
    check_quiet(browser, page)


@pytest.mark.slow
def test_a_model_without_classes_has_no_buttons_for_them(pages, browser):
    for name, count in (("conv", 0), ("digits", 11)):
        _, page = pages[name]
        open_page(browser, page, "panel=loop&class=3&steps=3&guidance=3")
        assert browser.run("document.querySelectorAll('[name=class]').length") == count
        assert browser.run("document.querySelectorAll('#loop-strip canvas').length") == 3
        check_quiet(browser, page)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("checkpoints/cifar10 page --out NEW/a.html", "takes 3,000,000 weights at most, not 7,"),
        ("checkpoints/digits page --out NEW/a.png", "ends in .html"),
        ("checkpoints/digits page --out NEW/a.html --data-dir NEW", "come with scikit-learn"),
    ],
)
def test_mistakes_are_one_sentence(command, message, tmp_path):
    failed = run("sample.py", *command.replace("NEW", str(tmp_path)).split())
    assert failed.returncode == 2 and message in failed.stderr
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_set_of_its_pictures_can_be_named(tmp_path):
    model = SphereEncoder.from_pretrained(DIGITS_MODEL)
    model.save_pretrained(tmp_path / "m")  # which does not say what it was trained on
    sources = []
    for flags in ((), ("--dataset", "digits")):
        path = tmp_path / f"{len(sources)}.html"
        done = run("sample.py", ".", "page", *flags, "--out", path, cwd=tmp_path / "m")
        assert done.returncode == 0, done.stderr
        html = path.read_text()
        assert '"name": "m"' in html
        sources.append(re.search(r'"source": "(\w*)"', html)[1])
    assert sources == ["", "digits"]


def test_the_default_place_is_beside_the_pictures(tmp_path):
    for name in ("digits-page.html", "digits-page-2.html"):
        done = run("sample.py", DIGITS_MODEL, "page", cwd=tmp_path)
        assert done.returncode == 0 and f"pictures/{name}" in done.stdout
        assert (tmp_path / "pictures" / name).is_file()
