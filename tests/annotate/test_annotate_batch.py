# SPDX-License-Identifier: Apache-2.0
"""Batch runs: inputs, answers, journals, and results that do not depend on when a run was killed."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from paddlemix.annotate.batch import Job, Progress, run
from paddlemix.annotate.contact_sheet import draw, wrapped
from paddlemix.annotate.objects import ObjectImages, part_of, read_objects, split_count
from paddlemix.annotate.scripts import OBJ, SCRIPTS, SYN, read_answers
from paddlemix.utils.errors import ConfigError, DataError
from paddlemix.utils.journal import Journal
from tests.tiny import tiny_image

GOOD = ["A red chair.", "A long caption.", "boardline", "single_object", "CAD"]


class StopError(Exception):
    """Stands for a kill."""


# ---- answers -------------------------------------------------------------------------------------------------


def test_answers_become_the_originals_keys_and_scores():
    assert read_answers(OBJ, GOOD) == {
        "desciption": "A red chair.",
        "caption": "A long caption.",
        "score": 3,
        "level": "single_object",
        "style": "CAD",
    }


@pytest.mark.parametrize("said", ["Good", " 'good'. ", "good", '"Good"'])
def test_case_quotes_and_full_stops_do_not_matter(said):
    assert read_answers(SYN, ["a", said]) == {"caption": "a", "score": 5}


def test_the_correct_spelling_means_the_same():
    assert read_answers(SYN, ["a", "Borderline"])["score"] == 3


def test_the_datas_multi_object_is_the_tools_multi_object():
    assert "unknown" not in read_answers(OBJ, [*GOOD[:3], "multi-object", "photo realistic"])


def test_an_unknown_answer_is_kept_as_it_was_said():
    record = read_answers(OBJ, [*GOOD[:2], "excellent", "galaxy", "CAD"])
    assert record["score"] is None
    assert record["level"] == "galaxy"
    assert record["unknown"] == {"score": "excellent", "level": "galaxy"}
    assert read_answers(SYN, ["a", "excellent"], 1)["score"] == 1


def test_only_the_first_turn_shows_the_views():
    assert OBJ.prompt(0, 4).startswith("<image><image><image><image>\nDescribe")
    assert "<image>" not in OBJ.prompt(1, 4)


# ---- inputs --------------------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_csv_is_cut_at_the_first_comma(tmp_path):
    path = write(tmp_path / "o.csv", 'a1,A chair, red and "old"\nb2,"A table, round"\n\nc3\n')
    assert read_objects(path, "id") == [
        {"id": "a1", "caption": 'A chair, red and "old"'},
        {"id": "b2", "caption": "A table, round"},
        {"id": "c3"},
    ]


def test_a_name_with_commas_or_quotes_stands_in_quotes(tmp_path):
    path = write(tmp_path / "o.csv", '"a,b",A chair, red\r\n"x""y","round, ""old"""\r\n"c"\r\n"odd"er,z\r\n')
    assert read_objects(path, "id") == [
        {"id": "a,b", "caption": "A chair, red"},
        {"id": 'x"y', "caption": 'round, "old"'},
        {"id": "c"},
        {"id": '"odd"er', "caption": "z"},
    ]


def test_a_header_line_is_no_object(tmp_path):
    assert read_objects(write(tmp_path / "o.csv", "id,caption\na,b\n"), "id") == [{"id": "a", "caption": "b"}]


def test_json_and_json_lines_hold_records_or_names(tmp_path):
    rows = [{"id": "a", "more": 1}, "b"]
    expected = [{"id": "a", "more": 1}, {"id": "b"}]
    assert read_objects(write(tmp_path / "o.json", json.dumps(rows)), "id") == expected
    assert read_objects(write(tmp_path / "o.jsonl", "\n".join(map(json.dumps, rows))), "id") == expected


def test_the_correct_spelling_of_a_key_is_read(tmp_path):
    path = write(tmp_path / "s.json", '[{"image_path": "x.png"}]')
    sheet = tiny_image(0, (40, 40))
    sheet.save(tmp_path / "x.png")
    (record,) = read_objects(path, "image_pth")
    assert len(ObjectImages(tmp_path, sheet=2).views(record)) == 4


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("o.json", '[{"ID": "a"}]', 'record 0: no "id"'),
        ("o.json", '[{"id": 5}]', 'record 0: "id" is 5; expected a text'),
        ("o.csv", "a,b\n\n,c\n", r'o\.csv:3: "id" is ""; expected a text'),
        ("o.json", "[1]", "record 0: expected an object with 'id'"),
        ("o.json", "[", "not valid JSON: line 1, column 2"),
        ("o.json", "[]", "expected a list of objects that is not empty"),
        ("o.jsonl", '"a"\n{', "o.jsonl:2: not valid JSON: line 1"),
    ],
)
def test_a_bad_input_is_an_error_that_names_its_place(tmp_path, name, text, message):
    with pytest.raises(DataError, match=message):
        read_objects(write(tmp_path / name, text), "id")


def test_parts_are_the_originals():
    assert split_count(2500, sheets=False) == 3
    assert split_count(2500, sheets=True) == 256
    rows = list(range(2500))
    assert [len(part_of(rows, 3, index)) for index in range(3)] == [834, 834, 832]
    assert [row for index in range(250) for row in part_of(rows, 256, index)] == rows
    with pytest.raises(ConfigError, match="have the parts 0 to 249"):
        part_of(rows, 256, 250)


def test_an_id_is_a_file_name_with_or_without_its_ending(tmp_path):
    for view, ending in zip((0, 1, 4, 5), ("", ".jpg", ".png", ".webp"), strict=True):
        folder = tmp_path / f"Cap3D_imgs_view{view}"
        folder.mkdir()
        tiny_image(view, (8 + view, 8)).save(folder / f"chair{ending}", format="PNG")
    assert [view.width for view in ObjectImages(tmp_path).views({"id": "chair"})] == [8, 9, 12, 13]
    for name in ("table", "t" * 300, "nul\0"):
        with pytest.raises(DataError, match=r"Cap3D_imgs_view0/[^/]+\.jpg: (no such image file|cannot be read)"):
            ObjectImages(tmp_path).views({"id": name})


# ---- runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def job(tmp_path):
    """23 sheets, of which number 5 is missing; batches of 3."""
    for number in range(23):
        if number != 5:
            tiny_image(number, (20, 20)).save(tmp_path / f"{number}.png")
    records = [{"image_pth": f"{number}.png", "n": number} for number in range(23)]
    settings = {"model": "m", "seed": 0, "sizes": (1, 2)}
    return Job(SCRIPTS["syn"], ObjectImages(tmp_path, sheet=2), records, tmp_path / "out.json", settings, 3, whole=True)


def ask(script, objects, numbers, stop_at=None):
    if stop_at is not None and stop_at in numbers:
        raise StopError
    # Depends on who shares the batch, as float sums of a real model do in their last bits.
    mates = sum(numbers)
    return [[f"object {number} with {mates}", "good" if number % 4 else "odd"] for number in numbers]


def test_a_run_that_is_stopped_anywhere_goes_on_to_the_same_file(job):
    run(job, ask, lambda _: None)
    straight = job.output.read_bytes()
    for stop in (0, 1, 4, 13, 22):
        job.output.unlink()
        with pytest.raises(StopError):
            run(job, lambda *args, stop=stop: ask(*args, stop_at=stop), lambda _: None)
        assert not job.output.exists()
        asked = []
        run(job, lambda s, o, n, asked=asked: asked.extend(n) or ask(s, o, n), lambda _: None)
        assert min(asked) == stop // 3 * 3
        assert job.output.read_bytes() == straight
        assert not job.journal.exists()


def test_a_journal_cut_at_any_byte_leads_to_the_same_file(job):
    run(job, ask, lambda _: None)
    straight = job.output.read_bytes()
    with pytest.raises(StopError):
        run(job, lambda *args: ask(*args, stop_at=20), lambda _: None)
    whole = job.journal.read_bytes()
    draw_bytes = random.Random(0)
    for size in [0, 1, len(whole) - 1, *(draw_bytes.randrange(len(whole)) for _ in range(20))]:
        job.output.unlink(missing_ok=True)
        job.journal.write_bytes(whole[:size] + b"\0" * draw_bytes.choice((0, 7)))
        run(job, ask, lambda _: None)
        assert job.output.read_bytes() == straight


def line(batch, records) -> str:
    return json.dumps({"batch": batch, "records": records})


SHEETS = [{"image_pth": f"{number}.png", "n": number, "caption": "x", "score": 5} for number in range(3, 6)]
"""Records as the second batch of ``job`` has them."""
ODD_LINES = {
    "no object": "[]",
    "null": "null",
    "nested without end": "[" * 100_000,
    "a number without end": "1" * 5000,
    "no JSON": '{"batch": 1, "records": [',
    "not UTF-8": "\udcff",
    "no number": json.dumps({"records": SHEETS}),
    "a text for a number": line("1", SHEETS),
    "true for a number": line(True, SHEETS),
    "another number": line(2, SHEETS),
    "the number before": line(0, SHEETS),
    "no records": json.dumps({"batch": 1}),
    "records that are none": line(1, "abc"),
    "records of no form": line(1, [1, 2, 3]),
    "too few records": line(1, SHEETS[:2]),
    "too many records": line(1, [*SHEETS, SHEETS[0]]),
    "records of other objects": line(1, SHEETS[::-1]),
    "records without answers": line(1, [{"image_pth": one["image_pth"], "n": one["n"]} for one in SHEETS]),
    "records that lost a key": line(1, [{key: one[key] for key in one if key != "n"} for one in SHEETS]),
    "unknown answers of no form": line(1, [one | {"unknown": 5} for one in SHEETS]),
}


@pytest.mark.parametrize("odd", ODD_LINES)
def test_a_line_that_is_not_of_this_run_is_done_again(job, odd):
    run(job, ask, lambda _: None)
    straight = job.output.read_bytes()
    job.output.unlink()
    with pytest.raises(StopError):
        run(job, lambda *args: ask(*args, stop_at=13), lambda _: None)
    lines = job.journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    lines[2] = ODD_LINES[odd].encode("utf-8", "surrogateescape") + b"\n"
    job.journal.write_bytes(b"".join(lines))
    asked = []
    run(job, lambda s, o, n: asked.extend(n) or ask(s, o, n), lambda _: None)
    assert min(asked) == 3
    assert job.output.read_bytes() == straight


@pytest.mark.parametrize(
    "text", ["[]", "null", "{}", '{"settings": []}', "[" * 5000, "x", "\ud800", '{"settings": 1e400}']
)
def test_a_file_that_is_no_journal_is_not_written_over(job, text):
    job.journal.write_bytes(text.encode("utf-8", "surrogatepass") + b"\n")
    with pytest.raises(ConfigError, match="not the journal of a run; remove it, or --restart"):
        run(job, ask, lambda _: None)
    assert job.journal.read_bytes() == text.encode("utf-8", "surrogatepass") + b"\n"


def test_unknown_answers_and_missing_pictures_are_kept_and_counted(job):
    told: list[Progress] = []
    records = run(job, ask, told.append)
    assert len(records) == 23
    assert records[5]["error"].endswith("5.png: no such image file; check the path and the image folder")
    assert records[4] == {
        "image_pth": "4.png",
        "n": 4,
        "caption": "object 4 with 7",
        "score": None,
        "unknown": {"score": "odd"},
    }
    assert (told[-1].unknown, told[-1].failed, told[-1].done) == (6, 1, 23)
    assert "23 of 23 objects" in told[-1].line
    assert told[-1].line.endswith("; 6 unknown answers, 1 without images")


def test_a_folder_without_any_picture_is_a_wrong_folder(job, tmp_path):
    job.source.require_some(job.records[5:7])
    for source, records in ((ObjectImages(tmp_path / "nowhere", sheet=2), job.records), (job.source, job.records[5:6])):
        with pytest.raises(DataError, match=rf"none of the first {len(records)} objects has an image, .*\.png; check"):
            source.require_some(records)


def test_a_first_batch_without_pictures_does_not_stop_the_run(job):
    first = replace(job, records=job.records[5:], batch_size=1)
    assert "error" in run(first, ask, lambda _: None)[0]


def test_a_part_gets_the_answers_of_the_whole_run(job):
    whole = run(replace(job, batch_size=1), ask, lambda _: None)
    part = replace(job, records=job.records[8:16], first=8, batch_size=1, output=job.output.with_name("1.json"))
    assert run(part, ask, lambda _: None) == whole[8:16]


def test_keys_of_an_earlier_run_are_dropped(job):
    records = [record | {"error": "gone", "unknown": {"score": "odd"}} for record in job.records[1:3]]
    found = run(replace(job, records=records), ask, lambda _: None)
    assert not [record for record in found if "error" in record]
    assert [record.get("unknown") for record in found] == [{"score": "odd"}, None]


def test_half_a_character_in_the_input_comes_back(job):
    records = [{"image_pth": "1.png", "more": "\ud800 \u6905"}]
    run(replace(job, records=records), ask, lambda _: None)
    assert json.loads(job.output.read_text(encoding="utf-8"))[0]["more"] == "\ud800 \u6905"


def test_what_a_kill_left_of_a_write_is_removed(job):
    left = [job.output.with_name(f".tmp-out.{ending}-77") for ending in ("json", "png")]
    other = job.output.with_name(".tmp-1.json-77")
    for path in (*left, other):
        path.write_bytes(b"half")
    run(job, ask, lambda _: None)
    assert [path.exists() for path in (*left, other)] == [False, False, True]


def test_another_setting_does_not_go_on_with_a_journal(job):
    with pytest.raises(StopError):
        run(job, lambda *args: ask(*args, stop_at=9), lambda _: None)
    other = Job(job.script, job.source, job.records, job.output, job.settings | {"seed": 1}, 3, whole=True)
    with pytest.raises(ConfigError, match="had seed 0, this one has 1; give the same"):
        run(other, ask, lambda _: None)
    assert len(run(other, ask, lambda _: None, restart=True)) == 23


def test_two_processes_cannot_share_a_journal(tmp_path):
    first = Journal(tmp_path / "j", {}, lambda batch, records: True)
    with pytest.raises(ConfigError, match="another process is working on this part"):
        Journal(tmp_path / "j", {}, lambda batch, records: True)
    first.close()


def test_progress_tells_speed_and_time_left():
    progress = Progress(100, done=40, here=20, seconds=10.0)
    assert progress.line == "40 of 100 objects, 2.00 a second, 30 s left"


# ---- the contact sheet ---------------------------------------------------------------------------------------


def test_a_contact_sheet_holds_a_card_for_every_object(tmp_path):
    views = [tiny_image(number, (30, 30)) for number in range(4)]
    entries = [(read_answers(OBJ, GOOD) | {"id": "chair"}, views), ({"id": "x", "error": "no file"}, [])]
    draw(tmp_path / "one.png", entries[:1], "one")
    draw(tmp_path / "three.png", [*entries, entries[0]], "three")
    one, three = (Image.open(tmp_path / f"{name}.png") for name in ("one", "three"))
    assert three.height > one.height
    assert three.width > 1.9 * one.width


def test_long_captions_are_cut_with_dots():
    lines = wrapped("word " * 200, 200, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("...")
    assert wrapped("short", 200, 3) == ["short"]


def test_text_without_spaces_breaks_anywhere():
    for text in ("\u4e00\u628a\u7ea2\u8272\u7684\u6905\u5b50" * 4, "x" * 40):
        assert "".join(wrapped(text, 100, 99)) == text
        assert len(wrapped(text, 100, 99)) > 1
        assert wrapped(text, 100, 2)[1].endswith("...")
