"""The page in a real browser: no errors on its console, no request, nothing wider than the window, and its parts do what they say."""

from __future__ import annotations

import json

import pytest

from aiflow_agents.evals.report import write_report

pytestmark = pytest.mark.browser

EVIL = '</script><script>document.title = "broken"</script><img src=x onerror="document.title=\'broken\'">'


@pytest.fixture(scope="module")
def page(tmp_path_factory, made, curve):
    """A run whose models, tags and expected answers try to break out."""
    make_run, add_traces = made
    folder = tmp_path_factory.mktemp("run")
    summary = make_run(folder, n=400, note=EVIL)
    curves = {"bytes": curve(summary), "seconds": curve(summary, "seconds", (0.0, 0.02, 0.5))}
    (folder / "curves.json").write_text(json.dumps(curves))
    (folder / "config.json").write_text(json.dumps({"suite": "specialists", "network": "home-wifi", "seed": 0}))
    add_traces(folder, note=EVIL)
    return write_report(folder)


@pytest.fixture
def opened(browser, page):
    """The page, all of its parts drawn."""
    browser.scheme("light")
    browser.window(1400, 12_000)  # so high that every part is in sight
    browser.open(page)
    browser.wait("return document.querySelectorAll('#changes .bar, #graph svg, #timeline svg, #tasks .row').length > 20"
                 " && ['changes', 'graph', 'timeline', 'tasks'].every(id => document.querySelector(`#${id} .drawn`).children.length)")  # fmt: skip
    yield browser
    assert browser.console() == []


COUNT = "return document.querySelector('#tasks [role=status]').textContent"


def test_nothing_is_wider_than_the_window_in_light_and_dark(opened):
    for width in (1400, 768, 400, 360):
        opened.window(width, 12_000)
        opened.wait(f"return innerWidth === {width} && document.querySelector('#graph svg')?.viewBox.baseVal.width <= {width}")
        for scheme in ("light", "dark"):
            opened.scheme(scheme)
            assert opened.run("return document.documentElement.scrollWidth") == width
            paper = opened.run("return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
            assert (max(paper) < 60) == (scheme == "dark") and (min(paper) > 200) == (scheme == "light")


def test_it_requests_nothing_and_runs_nothing_of_the_data(opened):
    assert opened.run("return performance.getEntriesByType('resource').length") == 0
    assert opened.run("return document.title") == "debate beats every member of its team"
    opened.run("document.querySelector('#tasks .row').click()")
    assert EVIL in opened.run("return document.querySelector('#tasks .detail').textContent")
    assert EVIL in opened.run("return document.querySelector('#timeline .said').textContent")
    assert opened.run("return document.querySelectorAll('img').length") == 0


def test_the_switch_wins_over_the_system(opened):
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = opened.run(paper)
    opened.run("document.querySelector('button.theme').click()")
    assert opened.run(paper) != light
    opened.run("document.querySelector('button.theme').click(); localStorage.clear()")
    assert opened.run(paper) == light


def test_one_cost_is_drawn_at_a_time(opened):
    seen = "return [...document.querySelectorAll('#cost figure')].filter(f => f.getBoundingClientRect().height > 0).map(f => f.className)"
    for cost in ("flops", "wire_bytes", "latency", "energy_j"):
        opened.run(f"document.getElementById('by-{cost}').click()")
        assert opened.run(seen) == [cost]


def test_curves_are_drawn_once_and_their_names_stay_inside(opened):
    for width in (1400, 400):
        opened.window(width, 12_000)
        opened.wait(f"return innerWidth === {width}")
        seen = opened.run("""return [...document.querySelectorAll('#budget figure.curve')].map(figure => {
          const drawn = [...figure.querySelectorAll('svg')].filter(svg => svg.getBoundingClientRect().width > 0), [svg] = drawn;
          const names = [...svg.querySelectorAll('.line text')].map(text => text.getBBox());
          return [drawn.length, svg.querySelectorAll('.line').length, svg.querySelectorAll('.band').length, names.length,
                  Math.max(...names.map(box => box.x + box.width)) - svg.viewBox.baseVal.width]; })""")
        assert [row[:4] for row in seen] == [[1, 9, 3, 9]] * 2 and all(row[4] <= 1 for row in seen)
    for scheme in ("light", "dark"):
        opened.scheme(scheme)
        paint = opened.run("""const of = name => getComputedStyle(document.querySelector(`#budget .line.${name} .way`));
          return [of('member').stroke, of('topology').stroke, of('rival').stroke, of('rival').strokeDasharray, of('marked').strokeWidth]""")
        assert len(set(paint[:3])) == 3 and paint[3] != "none" and paint[4] == "2.4px"


def test_what_was_fixed_leads_to_its_questions(opened, page):
    summary = json.loads(page.with_name("summary.json").read_text())
    verdict = next(v for v in summary["verdicts"] if (v["arm"], v["against"]) == ("debate", "members"))
    row = "[...document.querySelectorAll('#changes .change-row')].find(r => r.querySelector('button.name')?.textContent === 'debate')"
    for outcome, expected in (("fixed", verdict["wins"]), ("broken", verdict["losses"])):
        assert opened.run(f"return {row}.querySelector('.{outcome}').textContent") == f"{expected:,}"
        opened.run(f"{row}.querySelector('.{outcome}').click()")
        assert opened.run(COUNT) == f"{expected:,} of 400 questions"


def test_questions_are_searched_filtered_and_walked_through_by_keys(opened, page):
    opened.run("const box = document.querySelector('#tasks input'); box.value = 'Question 39'; box.dispatchEvent(new Event('input'))")
    records = map(json.loads, page.with_name("samples.jsonl").read_text().splitlines())
    found = {r["task_id"] for r in records if any("39" in (r[key] or "") for key in ("task_id", "question", "answer", "expected"))}
    assert opened.run(COUNT) == f"{len(found)} of 400 questions" and 11 < len(found) < 40
    opened.run("const box = document.querySelector('#tasks input'); box.value = ''; box.dispatchEvent(new Event('input'))")
    opened.run("document.querySelector('#tasks .list').focus()")
    chosen = "return document.querySelector('#tasks [aria-selected=true]').getAttribute('aria-posinset')"
    for key, place in (("\ue015", "2"), ("\ue015", "3"), ("\ue013", "2"), ("\ue010", "400"), ("\ue011", "1")):  # down, down, up, end, home
        opened.press(key)
        assert opened.run(chosen) == place
    assert opened.run("return document.querySelectorAll('#tasks .row').length") < 40, "only rows in sight exist"


def test_every_control_is_reached_by_the_keyboard(opened):
    names = opened.run("return [...document.querySelectorAll('button, select, input, [role=listbox], .node')].filter(e => e.tabIndex < 0).length")
    nameless = opened.run("return [...document.querySelectorAll('button, select, input')].filter("
                          "e => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).length")  # fmt: skip
    assert names == nameless == 0


def test_the_timeline_plays_pauses_and_is_scrubbed(opened):
    clock, dim = "return document.querySelector('#timeline .clock').textContent", "return document.querySelectorAll('#timeline .later').length"
    assert opened.run(clock) == "30 ms of 30 ms" and opened.run(dim) == 0
    opened.run("const bar = document.querySelector('#timeline input'); bar.value = 100; bar.dispatchEvent(new Event('input'))")
    assert opened.run(clock) == "3 ms of 30 ms" and opened.run(dim) == 2  # knot speaks at 6 ms, oak at 20
    assert opened.run("return document.querySelectorAll('#timeline .dots circle').length") == 1  # the question, on its way to the cloud
    play = "document.querySelector('#timeline .play').click()"
    opened.run(play)
    opened.wait("return parseFloat(document.querySelector('#timeline .clock').textContent) > 3.3")
    opened.run(play)
    paused = opened.run(clock)
    opened.run("return new Promise(done => setTimeout(done, 100))")
    assert opened.run(clock) == paused


def test_a_conversation_from_the_list_is_shown_on_the_timeline(opened):
    opened.run("const kept = document.querySelectorAll('#tasks select')[1]; kept.value = 'kept'; kept.dispatchEvent(new Event('change'))")
    assert opened.run(COUNT) == "3 of 400 questions"
    opened.run("document.querySelectorAll('#tasks .row')[2].click(); [...document.querySelectorAll('#tasks .detail button')].at(-1).click()")
    assert opened.run("return document.querySelectorAll('#timeline select')[1].selectedOptions[0].textContent") == "question 2"


def test_the_graph_says_the_bytes_of_the_trace(opened):
    opened.wait("return document.querySelector('#graph tbody tr')")
    edges = opened.run("return [...document.querySelectorAll('#graph tbody tr')].map(row => [...row.children].map(cell => cell.textContent))")
    assert sorted(edges) == [["cloud → phone", "1", "24 B"], ["edge → cloud", "1", "20 B"], ["phone → cloud", "1", "30 B"], ["phone → edge", "1", "30 B"]]


def test_drawings_are_saved_with_their_colours(opened):
    saved = opened.run("""
      let file; const make = URL.createObjectURL; URL.createObjectURL = (blob) => { file = blob; return make(blob); };
      HTMLAnchorElement.prototype.click = () => {};
      document.querySelector('#cost figure button').click(); URL.createObjectURL = make;
      return file.text();""")
    assert saved.startswith("<svg") and "stroke:rgb(" in saved and ">debate</text>" in saved
