"""The one configuration: what is refused and in which words, overrides, paths, what depends on a field, YAML."""

import json
import os

import pytest
import yaml

from raykd.algo.selection.strategies import PLUG_INS, STRATEGIES
from raykd.config import (
    COMPLETE,
    STRATEGY_NAMES,
    Config,
    check_renamed,
    depends_on,
    describe,
    load,
    load_file,
    section_of,
)
from raykd.errors import UserError
from raykd.paths import IN_JOB, IsPath
from raykd.presets import PRESETS, load_preset
from raykd.store.stage_folder import differences, flatten


def settings(**changes):
    values = {
        "storage_path": "runs/x",
        "pool": {"path": "images", "format": "class_folders"},
        "teacher": {"model": "ViT-B-32", "pretrained": "openai"},
        "student": {"backbone": "resnet18", "steps": 10},
    }
    for key, value in changes.items():
        *parents, last = key.split("__")
        target = values
        for parent in parents:
            target = target.setdefault(parent, {})
        target[last] = value
    return values


def refusal(**changes):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load(settings(**changes))
    return str(error.value)


def fields(section=Config, prefix=""):
    """(dotted name, field, section) of every leaf; a section that may be null counts as a leaf and as its fields."""
    for name, spec in section.model_fields.items():
        inner = section_of(spec.annotation)
        if inner is None or type(None) in getattr(spec.annotation, "__args__", ()):
            yield prefix + name, spec, section
        if inner:
            yield from fields(inner, f"{prefix}{name}.")


ALL = {name: spec for name, spec, _ in fields()}


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("storage_paht", "'storage_path'"),
        ("student__lerning_rate", "'learning_rate'"),
        ("selection__buget", "'budget'"),
        ("labels__orcale", "'oracle'"),
        ("pool__id_colum", "'id_column'"),
    ],
)
def test_an_unknown_key_is_refused_by_name_with_the_nearest_known_one(key, nearest):
    message = refusal(**{key: 1})
    assert f"{key.replace('__', '.')}: unknown key; did you mean {nearest}?" in message


def test_an_unknown_key_like_nothing_lists_the_known_ones():
    assert "mixture.zzz: unknown key; known: calibrate, ce_weight, objective, points, " in refusal(mixture__zzz=1)


def test_every_mistake_is_told_at_once_a_line_each():
    lines = refusal(rounds=0, seed=-1, student__warmup=2, teacher__precison="fp16").splitlines()
    assert [line.split(":")[0] for line in lines] == ["seed", "rounds", "teacher.precison", "student.warmup"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, ["rounds:", "greater than or equal to 1", "given: 0"]),
        ({"rounds": "many"}, ["rounds:", "integer", "given: 'many'"]),
        ({"pool__format": "zip"}, ["pool.format:", "'class_folders'", "'coop_split'", "given: 'zip'"]),
        ({"mixture__ce_weight": 1.5}, ["mixture.ce_weight:", "less than or equal to 1", "given: 1.5"]),
        ({"mixture__temperature": 0}, ["mixture.temperature:", "greater than 0", "given: 0"]),
        ({"selection__strategy": "pcorset"}, ["unknown strategy 'pcorset'; did you mean 'pcoreset'?"]),
        (
            {"student__passes_labeled": 2},
            ["student:", "exactly one of steps, passes_labeled, passes_unlabeled", "given"],
        ),
        ({"student__steps": None}, ["student:", "exactly one of steps", "given: none"]),
        (
            {"student__num_workers": [1, 65], "student__accumulate": 2},
            ["128 images a step", "65 workers (num_workers)", "2 parts (accumulate)", "give 130 or more"],
        ),
        ({"student__num_workers": [1, 65], "student__heads": "ce"}, ["64 images a step", "65 workers", "65 or more"]),
        (
            {"student__num_workers": 65, "student__sync_batchnorm": True},
            ["sync_batchnorm waits for labeled and unlabeled", "65 workers", "has 64", "or forward: stacked"],
        ),
        ({"student__precision": "fp16"}, ["precision: fp16 needs GPUs (num_gpus)", "bf16 or fp32"]),
        ({"student__heads": "ce", "student__teacher_views": "online"}, ["heads: ce looks at no teacher"]),
        (
            {"teacher": {"rule": "table", "table": "t.parquet"}, "student__teacher_views": 4},
            ["student.teacher_views: 4 needs a model that looks at images", "teacher.rule: table has not"],
        ),
        ({"student__crop_area": [1.0, 0.5]}, ["student.crop_area:", "[smaller, larger]", "given: [1.0, 0.5]"]),
        ({"teacher__replicas": [4, 2]}, ["teacher.replicas:", "[smaller, larger]", "given: [4, 2]"]),
        (
            {"student": {"backbone": "b", "steps": 9, "warmup": 0.1, "warmup_steps": 3}},
            ["0.1 and 3 (set the other to null)"],
        ),
        ({"student": {"backbone": "b", "steps": 9, "warmup_steps": 9}}, ["warmup_steps=9 of steps=9; expected fewer"]),
        ({"labels": {"start": "one_per_class"}}, ["start: one_per_class needs oracle: simulated"]),
        ({"labels": {"start": "given"}}, ["labels.given is the file or folder for start: given"]),
        ({"labels": {"given": "a.csv"}}, ["labels.given is the file or folder for start: given"]),
        ({"test_share": 0.7, "val_share": 0.3}, ["test_share + val_share = 1.0", "nothing is left"]),
        ({"test_share": 0.1, "test": {"path": "t", "format": "images"}}, ["give test or test_share, not both"]),
        ({"val_share": 0.1, "val": {"path": "t", "format": "images"}}, ["give val or val_share, not both"]),
        (
            {"pool__format": "parquet", "pool__uri_column": "u", "pool__image_column": "i"},
            ["exactly one of image_column and uri_column"],
        ),
        ({"pool__format": "parquet", "pool__image_column": None}, ["exactly one of image_column and uri_column"]),
        ({"pool__format": "list", "pool__image_column": "i"}, ["image_column is for format parquet and webdataset;"]),
        ({"pool__label_values": ["0", 0]}, ["label_values has '0' more than once"]),
        ({"pool__format": "coop_split"}, ["split_file is for format coop_split"]),
        ({"pool__split_file": "s.json"}, ["split_file is for format coop_split"]),
        ({"test": {"path": "t"}}, ["test.format: Field required"]),
        (
            {"pool__label_column": "y"},
            ["label_column is for format parquet and list and webdataset; format class_folders"],
        ),
        ({"teacher": {"model": "local-dir:t", "pretrained": "openai"}}, ["/t' brings its own weights"]),
        ({"selection__duplicate_cosine": 0.9}, ["give max_duplicates"]),
        ({"student__crop_area": [0, 1]}, ["student.crop_area.0:", "greater than 0", "given: 0"]),
        ({"teacher__num_gpus": 1.5}, ["teacher.num_gpus:", "a whole number", "given: 1.5"]),
    ],
)
def test_a_refusal_says_where_what_was_given_and_what_was_expected(changes, words):
    message = refusal(**changes)
    for word in words:
        assert word in message


def is_kind(spec, kind):
    options = getattr(spec.annotation, "__args__", ())
    return spec.annotation is kind or (kind in options and getattr(spec.annotation, "__origin__", None) is not dict)


def setting(name, value):
    """One override; of the parts that are not there by default, a whole one."""
    part, _, last = name.rpartition(".")
    whole = {"path": "t", "format": "class_folders"} if part in ("test", "val") else {}
    return {part: whole | {last: value}} if whole else {name.replace(".", "__"): value}


@pytest.mark.parametrize("name", [name for name, spec in ALL.items() if is_kind(spec, str)])
def test_an_empty_text_is_never_a_value(name):
    """An empty path would be the folder that the job runs in, an empty student.pretrained random weights."""
    assert f"{name}: String should have at least 1 character (given: '')" in refusal(**setting(name, ""))


@pytest.mark.parametrize("name", [name for name, spec in ALL.items() if is_kind(spec, float)])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), ".inf", "nan"])
def test_a_number_is_finite(name, value):
    assert f"{name}: Input should be a" in refusal(**setting(name, value))


@pytest.mark.parametrize("name", [name for name, spec in ALL.items() if is_kind(spec, float) or is_kind(spec, int)])
def test_yes_is_no_number(name):
    assert f"{name}: true and false (yes, no, on, off) have no meaning here" in refusal(**setting(name, True))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("student.crop_area", [float("nan"), 1]),
        ("selection.mixture", [0.5, float("inf")]),
        ("classes", ["a", ""]),
        ("labels.renamed", {"a": ""}),
    ],
)
def test_what_is_no_value_alone_is_none_in_a_list_either(name, value):
    assert name in refusal(**setting(name, value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "classes: [yes, no]",
            "classes: true and false (yes, no, on, off) have no meaning here; a name like that needs",
        ),
        ("selection: {mixture: [0.5, on]}", "selection.mixture: true and false"),
        (
            "labels: {renamed: {old: no}}",
            "labels.renamed.old: Input should be a valid string (given: False); put it into",
        ),
        ("classes: [cat, yes]", "a name like that needs quotes"),
        ("cache_path: 2026-01-02", "cache_path: Input should be a valid string"),
        ("no: 3", "config: the key False is no text to YAML; put it into quotes"),
        ("rounds: 010", "010 in line 1 is another number to YAML"),
        ("stall_s: 1:30", "1:30 in line 1 is another number to YAML"),
        ("labels: none", "labels: expected keys and values, such as oracle, start (given: 'none')"),
    ],
)
def test_what_yaml_takes_for_something_else_is_told(text, words, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(f"{text}\n{yaml.safe_dump(settings())}")
    with pytest.raises(UserError) as error:
        load_file(path)
    assert words in str(error.value)


@pytest.mark.parametrize("number", [0, 0.25, 1, 1.0, 2, 8.0])
def test_a_part_of_a_gpu_or_whole_ones_are_allowed(number):
    assert load(settings(teacher__num_gpus=number)).teacher.num_gpus == number


@pytest.mark.parametrize(
    "changes", [{"teacher__replicas": "x"}, {"selection__mixture": "y"}, {"classes": 3}, {"student__pretrained": 3}]
)
def test_a_refusal_names_the_field_and_not_pydantics_inner_parts(changes):
    (key,) = changes
    for line in refusal(**changes).splitlines():
        assert line.startswith(key.replace("__", ".") + ": ")


@pytest.mark.parametrize("name", ["pool", "teacher", "student", "storage_path"])
def test_a_missing_required_key_is_named(name):
    values = settings()
    del values[name]
    with pytest.raises(ValueError, match=rf"^{name}: Field required$"):
        load(values)


def test_a_checked_config_cannot_be_changed():
    with pytest.raises(Exception, match="frozen"):
        load(settings()).rounds = 3


# ---------------------------------------------------------------- overrides


def test_overrides_reach_any_depth_and_are_read_as_yaml():
    given = load(
        settings(),
        ["rounds=7", "student.learning_rate=1e-4", "student.crop_area=[0.2, 0.8]", "selection.budget=null",
         "student.flip=false", "test.path=s3://b/t?region=eu-west-1", "test.format=images",
         "student.pretrained=a=b.pth"],
    )  # fmt: skip
    assert (given.rounds, given.student.learning_rate, given.student.crop_area) == (7, 1e-4, (0.2, 0.8))
    assert given.selection.budget is None
    assert given.student.flip is False
    assert given.test.path == "s3://b/t?region=eu-west-1"
    assert given.student.pretrained == os.path.abspath("a=b.pth")


def test_the_last_override_of_a_key_wins_and_null_makes_room_for_another():
    given = load(settings(), ["rounds=7", "rounds=9", "student.steps=null", "student.passes_labeled=200"])
    assert (given.rounds, given.student.steps, given.student.passes_labeled) == (9, None, 200)


@pytest.mark.parametrize(
    "override",
    [
        "rounds",
        "=3",
        ".rounds=3",
        "pool..path=x",
        "student.crop_area=[1,",
        "pool.path.x=1",
        "rounds.x=1",
    ],
)
def test_an_override_that_cannot_be_read_is_refused_by_name(override):
    with pytest.raises(ValueError, match="--set ") as error:
        load(settings(), [override])
    assert repr(override) in str(error.value)


def test_an_override_below_a_field_that_has_none_is_told_with_what_to_give():
    with pytest.raises(UserError, match=r"pool\.path has no fields of its own; give --set pool\.path="):
        load(settings(), ["pool.path.x=1"])


def test_an_unknown_key_in_an_override_is_refused_too():
    with pytest.raises(ValueError, match=r"student\.stepz: unknown key; did you mean 'steps'\?"):
        load(settings(), ["student.stepz=3"])


# ---------------------------------------------------------------- paths

PATHS = [name for name, spec in ALL.items() if any(isinstance(mark, IsPath) for mark in spec.metadata)]
BEGIN = {"teacher.model": "local-dir:", "student.backbone": "open_clip:local-dir:"}


def with_path(name, path):
    """Settings in which that field is a path."""
    more = {
        "pool.split_file": {"pool__format": "coop_split"},
        "test.split_file": {"test": {"path": "t", "format": "coop_split"}},
        "val.split_file": {"val": {"path": "t", "format": "coop_split"}},
        "test.path": {"test": {"format": "images"}},
        "val.path": {"val": {"format": "images"}},
        "teacher.model": {"teacher__pretrained": None},
        "teacher.table": {"teacher__rule": "table"},
        "labels.given": {"labels": {"start": "given"}},
    }.get(name, {})
    return settings(**more, **{name.replace(".", "__"): BEGIN.get(name, "") + path})


def path_in(config, name):
    for part in name.split("."):
        config = getattr(config, part)
    return config.removeprefix(BEGIN.get(name, ""))


@pytest.fixture
def two_folders(tmp_path, monkeypatch):
    """The folder of a config, and the current one beside it."""
    for name in ("conf", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "conf", tmp_path / "here"


def written(folder, values):
    (folder / "c.yaml").write_text(yaml.safe_dump(values))
    return folder / "c.yaml"


def test_every_field_that_is_a_path_is_marked_as_one():
    sources = [f"{part}.{name}" for part in ("pool", "test", "val") for name in ("path", "split_file")]
    others = ["storage_path", "cache_path", "classes", "teacher.model", "teacher.pretrained",
              "teacher.model_config_file", "teacher.table", "student.backbone", "student.pretrained",
              "labels.given", "labels.answers"]  # fmt: skip
    assert sorted(PATHS) == sorted(sources + others)


@pytest.mark.parametrize("name", PATHS)
def test_a_relative_path_begins_at_the_configs_folder_and_one_of_the_command_line_at_the_current_one(name, two_folders):
    conf, here = two_folders
    file = written(conf, with_path(name, "sub/x.pt"))
    assert path_in(load_file(os.path.relpath(file)), name) == f"{conf}/sub/x.pt"
    override = f"{name}={BEGIN.get(name, '')}./x.pt"
    assert path_in(load_file(file, [override]), name) == f"{here}/x.pt"
    assert path_in(load(with_path(name, "sub/x.pt")), name) == f"{here}/sub/x.pt"  # a preset's


@pytest.mark.parametrize("name", PATHS)
def test_a_path_may_begin_at_home_or_hold_a_variable_and_what_is_absolute_or_a_uri_stays(
    name, two_folders, monkeypatch
):
    conf, _ = two_folders
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch")
    for given, meant in {
        "~/x.pt": "/home/me/x.pt",
        "$SCRATCH/x.pt": "/scratch/x.pt",
        "${SCRATCH}/x.pt": "/scratch/x.pt",
        "/data/x.pt": "/data/x.pt",
        "s3://bucket/x.pt?region=eu-west-1": "s3://bucket/x.pt?region=eu-west-1",
        "../x.pt": f"{conf.parent}/x.pt",
    }.items():
        assert path_in(load_file(written(conf, with_path(name, given))), name) == meant
    with pytest.raises(UserError, match=rf"{name}: '.*\$NOWHERE/x' names \$NOWHERE, which is not set here"):
        load_file(written(conf, with_path(name, "$NOWHERE/x")))


def test_a_name_is_no_path_unless_there_is_such_a_file(two_folders):
    conf, _ = two_folders
    file = written(conf, settings(teacher__pretrained="openai", pool__path="demo:digits", classes=["a", "b"]))
    given = load_file(file)
    assert (given.teacher.model, given.teacher.pretrained, given.pool.path) == ("ViT-B-32", "openai", "demo:digits")
    assert load_preset("demo").teacher.model == "local-dir:{raykd}/demo/teacher"
    (conf / "openai").touch()
    assert load_file(file).teacher.pretrained == f"{conf}/openai"


@pytest.mark.parametrize(
    ("name", "there", "what"),
    [
        ("storage_path", "campaign.json", "no campaign.json"),
        ("cache_path", "encode", "no encode"),
        ("labels.answers", "", "nothing"),
        ("pool.path", "", "nothing"),
        ("teacher.model", "", "nothing"),
    ],
)
def test_what_a_path_led_to_from_the_current_folder_is_not_passed_over(name, there, what, two_folders):
    """Relative paths once began there: a campaign would silently begin anew, answers would not be found."""
    conf, here = two_folders
    file = written(conf, with_path(name, "runs/x"))
    (here / "runs" / "x" / there).mkdir(parents=True)
    with pytest.raises(UserError) as error:
        load_file(file)
    said = str(error.value)
    begin = BEGIN.get(name, "")
    assert said.startswith(f"{name}: '{begin}runs/x' in a config begins at the config's folder, so it is {conf}/runs/x")
    assert f"{what} is there; but there is {here}/runs/x" in said
    assert f"write '{begin}../here/runs/x' or the absolute path" in said
    for given in ("../here/runs/x", f"{here}/runs/x"):
        assert path_in(load_file(written(conf, with_path(name, given))), name) == f"{here}/runs/x"
    file = written(conf, with_path(name, "runs/x"))
    assert path_in(load_file(file, [f"{name}={begin}runs/x"]), name) == f"{here}/runs/x"
    (conf / "runs" / "x" / there).mkdir(parents=True)
    assert path_in(load_file(file), name) == f"{conf}/runs/x"


def test_another_folder_of_the_campaigns_name_is_no_campaign(two_folders):
    conf, here = two_folders
    (here / "runs" / "x").mkdir(parents=True)
    assert load_file(written(conf, settings())).storage_path == f"{conf}/runs/x"


@pytest.mark.parametrize("name", ["storage_path", "cache_path", "labels.answers"])
def test_a_submitted_job_with_a_relative_path_to_write_to_is_refused(name, two_folders, monkeypatch):
    values = with_path(name, "runs/x") | {"pool": {"path": "/images", "format": "images"}}
    if name != "storage_path":
        values["storage_path"] = "/runs/x"
    file = written(two_folders[0], values)
    monkeypatch.setenv(IN_JOB, "{}")
    for overrides in ([], [f"{name}=mine"]):
        with pytest.raises(UserError, match=rf"^{name} '.*' is relative, and a submitted job runs in a temporary copy"):
            load_file(file, overrides)
    assert path_in(load_file(file, [f"{name}=/shared/x"]), name) == "/shared/x"


@pytest.mark.parametrize(
    "name", [name for name in PATHS if name not in ("storage_path", "cache_path", "labels.answers")]
)
def test_a_submitted_job_is_told_where_a_relative_path_that_is_not_there_was_looked_for(name, two_folders, monkeypatch):
    conf, _ = two_folders
    values = with_path(name, "x.pt") | {"storage_path": "/runs/x"}
    values["pool"] |= {} if name == "pool.path" else {"path": "/images"}
    for part in ("test", "val"):
        if part in values and name != f"{part}.path":
            values[part] |= {"path": "/t"}
    monkeypatch.setenv(IN_JOB, "{}")
    with pytest.raises(
        UserError, match=rf"^{name}: '.*x\.pt' is relative, and a submitted job .*: there is no {conf}/x\.pt"
    ):
        load_file(written(conf, values))
    (conf / "x.pt").touch()
    assert path_in(load_file(conf / "c.yaml"), name) == f"{conf}/x.pt"  # it came along with the working dir


# ---------------------------------------------------------------- what depends on a field


def test_every_field_is_in_the_parts_of_the_stages_that_depend_on_it():
    given = load_preset("demo", ["test=null"])
    parts = {stage: flatten(given.part(stage)) for stage in COMPLETE}
    fixed, identity = flatten(given.fixed()), flatten(given.identity())
    for name, spec, section in fields():
        if name.startswith(("test.", "val.")):  # null there: one entry for the whole section
            continue
        depends = depends_on(section, spec)
        if name.startswith("pool."):
            depends = {"stages": ["pool"], "fixed": True}
        assert [stage for stage in COMPLETE if name in parts[stage]] == depends["stages"], name
        assert (name in fixed) == depends["fixed"], name
        assert (name in identity) == bool(depends["stages"]), name


def test_parts_are_the_values_themselves_as_plain_data():
    given = load_preset("demo", ["seed=3", "student.learning_rate=0.5"])
    assert given.part("train")["seed"] == given.part("select")["seed"] == given.fixed()["seed"] == 3
    assert given.part("train")["student"]["learning_rate"] == 0.5
    assert given.part("train")["student"]["crop_area"] == [0.7, 1.0]  # as JSON has it
    assert given.part("predict") == {"decode": "reduced", "student": {"predict_batch_size": 256}}
    assert set(given.part("mix")) == {"mixture"}
    assert given.part("pool")["pool"] == given.pool.model_dump(mode="json")


@pytest.mark.parametrize(
    "override",
    ["storage_path=other", "rounds=9", "max_bad_share=0.5", "teacher.replicas=[1, 4]", "teacher.num_gpus=0.5",
     "student.loader_processes=3", "student.predict_replicas=2", "selection.shards=7", "cache_path=cache",
     "labels.min_answered=0.5", "labels.answers=here", "progress=lines", "local_cpus=8", "stall_s=60"],
)  # fmt: skip
def test_no_stage_depends_on_resources_and_progress(override):
    before, now = (load_preset("demo", overrides) for overrides in ([], [override]))
    assert before != now
    assert differences(before.identity(), now.identity()) == []


@pytest.mark.parametrize(
    ("override", "stages"),
    [
        ("seed=1", ["select", "train"]),
        ("split_seed=1", ["pool"]),
        ("pool.path=other", ["pool"]),
        ("test_share=0.1", ["pool"]),
        ("teacher.batch_size=3", ["encode"]),
        ("teacher.templates=['a {}']", ["teacher"]),
        ("classes=[a, b]", ["teacher"]),
        ("selection.strategy=random", ["select"]),
        ("selection.budget=11", ["select"]),
        ("labels.start=none", ["select"]),
        ("labels.oracle=simulated", []),  # as it is
        ("student.learning_rate=0.5", ["train"]),
        ("student.batch_labeled=16", ["train"]),
        ("student.num_workers=2", ["train"]),
        ("student.predict_batch_size=3", ["predict"]),
        ("mixture.search=false", ["mix"]),
    ],
)
def test_a_change_is_one_line_in_the_parts_of_the_stages_that_depend_on_it(override, stages):
    before, now = (load_preset("demo", overrides) for overrides in ([], [override]))
    lines = {stage: differences(before.part(stage), now.part(stage)) for stage in COMPLETE}
    assert [stage for stage, found in lines.items() if found] == stages
    for stage in stages:
        (line,) = lines[stage]
        assert line.startswith(override.split("=")[0] + ": was ")


def test_texts_of_classes_are_the_teachers_and_a_mapping_is_plain_data_whatever_its_keys_are():
    given = {"cat": ["tabby"], 3: [], "St. Bernard": {"texts": [], "descriptions": ["a dog."]}}
    before, now = load(settings(classes=["cat", "3", "St. Bernard"])), load(settings(classes=given))
    changed = [stage for stage in COMPLETE if differences(before.part(stage), now.part(stage))]
    assert changed == ["teacher"]
    assert load(yaml.safe_load(yaml.safe_dump(now.model_dump(mode="json")))).part("teacher") == now.part("teacher")
    assert load(settings(), ["classes.cat=[tabby]", "classes.dog=null"]).classes == {"cat": ["tabby"], "dog": None}
    repeated = refusal(classes=["cat", "dog", "cat"])
    assert repeated == "classes: 'cat' is there more than once (given: ['cat', 'dog', 'cat'])"
    assert "classes: 'cat' has the key 'text'; did you mean 'texts'?" in refusal(classes={"cat": {"text": "x"}})
    assert "labels.renamed: 'cat' is still among" in refusal(classes=given, labels__renamed={"cat": "3"})


def test_the_usual_columns_of_parquet_are_there_unless_others_are_given():
    def columns(**given):
        pool = load(settings(pool={"path": "p", "format": "parquet", **given})).pool
        return pool.id_column, pool.image_column, pool.uri_column

    assert columns() == ("sample_id", "image", None)
    assert columns(id_column=None, uri_column="where") == (None, None, "where")
    assert columns(image_column="png") == ("sample_id", "png", None)


def test_what_is_fixed_is_which_images_there_are_and_the_seed():
    assert set(load(settings()).fixed()) == {"seed", "split_seed", "pool", "test", "val", "test_share", "val_share"}


# ---------------------------------------------------------------- renamed classes


def test_renamed_leads_to_classes_and_two_may_become_one():
    given = load(settings(classes=["bird", "cat"], labels__renamed={"duck": "bird", "tit": "bird"}))
    assert given.labels.renamed == {"duck": "bird", "tit": "bird"}
    assert load(settings(classes=["bird"]), ["labels.renamed.duck=bird"]).labels.renamed == {"duck": "bird"}


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        ({"duck": "brid"}, "labels.renamed: 'duck' is now 'brid', no class; did you mean 'bird'?"),
        ({"cat": "bird"}, "labels.renamed: 'cat' is still among the classes"),
        ({"bird": "bird"}, "labels.renamed: 'bird' is still among the classes"),
    ],
)
def test_renamed_that_leads_nowhere_is_refused(renamed, message):
    assert message in refusal(classes=["bird", "cat"], labels__renamed=renamed)
    with pytest.raises(UserError, match=message.split(";")[0]):
        check_renamed(renamed, ["bird", "cat"])  # for classes that are only known later


# ---------------------------------------------------------------- words for people


def test_every_field_says_what_it_is():
    for name, spec in ALL.items():
        if section_of(spec.annotation) is None:
            assert spec.description, name
    for _, _, section in fields():
        assert section.__doc__, section


def test_the_list_of_fields_shows_every_one_with_its_default():
    lines = "\n".join(describe()).splitlines()
    for name, spec in ALL.items():
        if section_of(spec.annotation) is None and not name.startswith(("test.", "val.")):  # they say "as in pool"
            assert any(line.startswith(f"{name}  [") for line in lines), name
    assert "test  [null]  fixed once the pool is listed" in lines
    assert "student.learning_rate  [0.001]  free until a round's training is complete" in lines
    assert "seed  [0]  fixed once the pool is listed" in lines
    assert "rounds  [5]  free" in lines
    assert "storage_path  [required]  free" in lines


def test_the_names_of_strategies_are_those_there_are():
    assert sorted(STRATEGY_NAMES) == sorted(STRATEGIES)
    assert PLUG_INS == "raykd.strategies"


def test_options_are_those_that_the_strategies_look_at():
    from raykd.config import STRATEGY_OPTIONS

    looked_at = {
        name: tuple(each for each in STRATEGIES if name in STRATEGIES[each].options) for name in STRATEGY_OPTIONS
    }
    assert {name: sorted(given) for name, given in STRATEGY_OPTIONS.items()} == {
        name: sorted(given) for name, given in looked_at.items()
    }
    assert {name for each in STRATEGIES.values() for name in each.options} == set(STRATEGY_OPTIONS)


def test_a_strategys_options_are_for_it_alone():
    spread = load(settings(selection__strategy="spread", selection__score="entropy", selection__apart=0.3)).selection
    assert spread.options == {"score": "entropy", "apart": 0.3}
    assert not load(settings()).selection.options
    message = refusal(selection__gamma=3)
    assert "selection: strategy 'pcoreset' does not look at gamma; leave it out, or choose falcun" in message
    assert "selection.apart: Input should be less than or equal to 2" in refusal(
        selection__strategy="spread", selection__apart=3
    )
    assert "is balanced by itself" in refusal(selection__strategy="class_balanced", selection__balance=True)


def test_the_strategy_of_another_package_is_known(monkeypatch):
    from importlib.metadata import EntryPoint

    from raykd import config

    monkeypatch.setattr(config, "entry_points", lambda group: [EntryPoint("mine", "somewhere:Mine", group)])
    assert load(settings(selection__strategy="mine")).selection.strategy == "mine"
    assert "unknown strategy 'mime'; did you mean 'mine'?" in refusal(selection__strategy="mime")


# ---------------------------------------------------------------- files and the command line


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_yaml(name, tmp_path):
    before = load_preset(name)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(before.model_dump(mode="json"), allow_unicode=True), "utf-8")
    assert load_file(path) == before
    assert load_file(path, ["seed=5"]).seed == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b", "holds no keys, but a list; expected keys and values"),
        ("", "is empty; expected keys and values"),
        ("hello", "holds no keys, but a str"),
        ("a:\n\tb: 1", "is not YAML, line 2, column 1: a tab; YAML is indented with spaces"),
        ("a: [1", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("a: 1\n---\na: 2", "is not YAML"),
        ("storage_path: 2026-13-40", "is not YAML: month must be in 1..12"),
        ("a: !!python/name:os.system x", "is not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused_with_its_name(text, words, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        load_file(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nselection: {}\nrounds: 2\nselection:\n  shards: 2", "'selection' .* twice, in lines 2 and 4"),
        ("student:\n  steps: 1\n  'steps': 2\n", "'steps' stands there twice, in lines 2 and 3"),
        ("pool: [{a: 1, a: 1}]", "'a' stands there twice, in lines 1 and 1"),
    ],
)  # fmt: skip
def test_a_key_that_stands_there_twice_is_refused_with_both_lines(text, words, tmp_path):
    """The first would be dropped without a word."""
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        load_file(path)
    assert str(path) in str(error.value)
    with pytest.raises(UserError, match=r"--set 'selection=.*'shards' stands there twice"):
        load(settings(), ["selection={shards: 1, shards: 2}"])


def test_a_merged_key_may_be_given_anew(tmp_path):
    path = tmp_path / "merged.yaml"
    sources = "val: &source {path: t, format: images}\ntest: {<<: *source, path: u}\n"
    path.write_text(yaml.safe_dump(settings()) + sources)
    given = load_file(path)
    assert (given.val.path, given.test.path, given.test.format) == (str(tmp_path / "t"), str(tmp_path / "u"), "images")


def test_a_missing_file_a_folder_and_bytes_are_refused_with_their_name(tmp_path):
    with pytest.raises(ValueError, match=r"no config file '.*nowhere\.yaml'; give a YAML file or --preset NAME"):
        load_file(tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match="is a folder; give the YAML file of a config"):
        load_file(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"rounds: 3\nclasses: caf\xe9.txt")
    with pytest.raises(ValueError, match=r"bytes\.yaml is not UTF-8, line 2 \(byte 0xe9\); save it as UTF-8"):
        load_file(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("written", [json.dumps, lambda values: "\ufeff" + yaml.safe_dump(values)])
def test_json_is_yaml_too_and_a_byte_order_mark_is_passed_over(written, tmp_path):
    path = tmp_path / "config"
    path.write_text(written(settings(rounds=7)), "utf-8")
    assert load_file(path).rounds == 7


def test_a_cap_on_near_duplicates_is_given_whole():
    values = PRESETS["demo"]()
    with pytest.raises(ValueError, match="duplicate_cosine says which picks are near-duplicates; give max_duplicates"):
        load(values, ["selection.duplicate_cosine=0.9"])
    cap = load(values, ["selection.duplicate_cosine=0.9", "selection.max_duplicates=2"]).selection.cap
    assert (cap.limit, cap.cosine, cap.column) == (2, 0.9, "features")
