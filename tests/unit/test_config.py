"""The one configuration: what is refused and in which words, overrides, presets, identity, YAML."""

import copy
from pathlib import Path

import open_clip
import pytest
import timm
import yaml

from raykd import config
from raykd.config import FREE, Config, describe, from_command_line, load, load_file, load_preset, section_of
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
    assert "mixture.zzz: unknown key; known: ce_weight, search, temperature" in refusal(mixture__zzz=1)


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
        ({"selection__strategy": "pcorset"}, ["unknown strategy 'pcorset'", "known: badge, ", "pcoreset, random"]),
        (
            {"student__passes_labeled": 2},
            ["student:", "exactly one of steps, passes_labeled, passes_unlabeled", "given"],
        ),
        ({"student__steps": None}, ["student:", "exactly one of steps", "given: none"]),
        ({"student__num_workers": 3}, ["batch_labeled=64", "num_workers=3"]),
        ({"student__crop_area": [1.0, 0.5]}, ["student.crop_area:", "[smaller, larger]", "given: [1.0, 0.5]"]),
        ({"teacher__replicas": [4, 2]}, ["teacher.replicas:", "[smaller, larger]", "given: [4, 2]"]),
        ({"labels": {"start": "one_per_class"}}, ["start: one_per_class needs oracle: simulated"]),
        ({"labels": {"start": "given"}}, ["labels.given is the file for start: given"]),
        ({"labels": {"given": "a.csv"}}, ["labels.given is the file for start: given"]),
        ({"test_share": 0.7, "val_share": 0.3}, ["test_share + val_share = 1.0", "nothing is left"]),
        ({"test_share": 0.1, "test": {"path": "t", "format": "images"}}, ["give test or test_share, not both"]),
        ({"val_share": 0.1, "val": {"path": "t", "format": "images"}}, ["give val or val_share, not both"]),
        ({"pool__format": "parquet", "pool__uri_column": "u"}, ["exactly one of image_column and uri_column"]),
        ({"pool__format": "coop_split"}, ["split_file is for format coop_split"]),
        ({"pool__split_file": "s.json"}, ["split_file is for format coop_split"]),
        ({"test": {"path": "t"}}, ["test.format: Field required"]),
        ({"pool__label_column": "y"}, ["label_column is for format parquet; format class_folders would not look"]),
        ({"teacher": {"model": "local-dir:t", "pretrained": "openai"}}, ["'local-dir:t' brings its own weights"]),
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
    return kind in (spec.annotation, *getattr(spec.annotation, "__args__", ()))


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
    [("student.crop_area", [float("nan"), 1]), ("selection.mixture", [0.5, float("inf")]), ("classes", ["a", ""])],
)
def test_what_is_no_value_alone_is_none_in_a_list_either(name, value):
    assert name in refusal(**setting(name, value))


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
    assert given.student.pretrained == "a=b.pth"


def test_the_last_override_of_a_key_wins_and_null_makes_room_for_another():
    given = load(settings(), ["rounds=7", "rounds=9", "student.steps=null", "student.passes_labeled=200"])
    assert (given.rounds, given.student.steps, given.student.passes_labeled) == (9, None, 200)


@pytest.mark.parametrize("override", ["rounds", "student.crop_area=[1,"])
def test_an_override_that_cannot_be_read_is_refused_by_name(override):
    with pytest.raises(ValueError, match="--set ") as error:
        load(settings(), [override])
    assert repr(override) in str(error.value)


def test_an_unknown_key_in_an_override_is_refused_too():
    with pytest.raises(ValueError, match=r"student\.stepz: unknown key; did you mean 'steps'\?"):
        load(settings(), ["student.stepz=3"])


# ---------------------------------------------------------------- identity


def test_free_fields_are_not_in_the_identity_and_all_others_are():
    identity = flatten(load_preset("demo", ["test=null"]).identity())
    absent = {"test", "val"}  # null there: one entry for the whole section
    for name, spec in ALL.items():
        if name.split(".")[0] in absent and "." in name:
            continue
        assert (name in identity) == (spec.json_schema_extra != FREE), name


@pytest.mark.parametrize(
    "override",
    ["storage_path=other", "rounds=9", "max_bad_share=0.5", "teacher.replicas=[1, 4]", "teacher.num_gpus=0.5",
     "student.loader_processes=3", "student.predict_replicas=2", "selection.shards=7",
     "labels.min_answered=0.5", "labels.answers=here", "progress=lines", "local_cpus=8", "stall_s=60"],
)  # fmt: skip
def test_resources_and_progress_may_change_during_a_campaign(override):
    before, now = (load_preset("demo", overrides) for overrides in ([], [override]))
    assert before != now
    assert differences(before.identity(), now.identity()) == []


@pytest.mark.parametrize(
    "override",
    ["seed=1", "student.learning_rate=0.5", "student.steps=3", "selection.strategy=random", "selection.budget=11",
     "pool.path=other", "teacher.batch_size=3", "mixture.search=false", "classes=[a, b]", "student.batch_labeled=16",
     "student.num_workers=2"],
)  # fmt: skip
def test_what_changes_the_answer_changes_the_identity_in_that_field_alone(override):
    before, now = (load_preset("demo", overrides).identity() for overrides in ([], [override]))
    (line,) = differences(before, now)
    assert line.startswith(override.split("=")[0] + ": was ")


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
    assert {"test  [null]", "val  [null]", "student.learning_rate  [0.001]"} <= set(lines)
    assert "rounds  [5, free]" in lines
    assert "storage_path  [required, free]" in lines


# ---------------------------------------------------------------- files and the command line


@pytest.mark.parametrize("name", config.PRESETS)
def test_a_config_survives_yaml(name, tmp_path):
    before = load_preset(name)
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(before.model_dump(mode="json"), allow_unicode=True), "utf-8")
    assert load_file(path) == before
    assert load_file(path).identity() == before.identity()
    assert load_file(path, ["seed=5"]).seed == 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b", "holds list; expected keys and values"),
        ("", "holds NoneType"),
        ("a: [1", "is not YAML"),
        ("a: b: c", "is not YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused_with_its_name(text, words, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        load_file(path)
    assert str(path) in str(error.value)


def test_a_missing_file_a_folder_and_bytes_are_refused_with_their_name(tmp_path):
    with pytest.raises(ValueError, match=r"no config file '.*nowhere\.yaml'; give a YAML file or --preset NAME"):
        load_file(tmp_path / "nowhere.yaml")
    with pytest.raises(ValueError, match="cannot read config file"):
        load_file(tmp_path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot read config file"):
        load_file(tmp_path / "bytes.yaml")


def test_the_command_line_takes_a_file_and_overrides(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(settings()))
    given = from_command_line([str(path), "--set", "rounds=3", "seed=4", "--set", "student.steps=8"])
    assert (given.rounds, given.seed, given.student.steps) == (3, 4, 8)


def test_the_command_line_takes_a_preset_and_the_demo_writes_its_pool(monkeypatch, tmp_path):
    from raykd.demo import digits

    written = []
    monkeypatch.setattr(digits, "write_pool", written.append)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    given = from_command_line(["--preset", "demo", "--set", "rounds=2"])
    assert given.rounds == 2
    assert written == [given.pool.path]
    assert given.pool.path.startswith(str(tmp_path))
    from_command_line(["--preset", "caltech101"])
    assert len(written) == 1


def test_the_demo_on_a_pool_of_the_users_own_leaves_it_as_it_is(monkeypatch, tmp_path):
    mine = tmp_path / "mine.parquet"
    mine.write_bytes(b"the user's own")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = from_command_line(["--preset", "demo", "--set", f"pool.path={mine}"])
    assert given.pool.path == str(mine)
    assert mine.read_bytes() == b"the user's own"
    assert not (tmp_path / "cache").exists()  # nor is the demo's pool made, which nobody asked for


@pytest.mark.parametrize(
    "arguments", [[], ["a.yaml", "--preset", "demo"], ["--preset", "nonesuch"], ["a.yaml", "--sett", "x=1"]]
)
def test_the_command_line_wants_one_config(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        from_command_line(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


# ---------------------------------------------------------------- presets


@pytest.mark.parametrize("name", config.PRESETS)
def test_presets_name_models_that_exist(name):
    given = load_preset(name)
    assert timm.is_model(given.student.backbone.split(".")[0])
    if not given.teacher.model.startswith("local-dir:"):
        assert given.teacher.pretrained in open_clip.list_pretrained_tags_by_model(given.teacher.model)
    assert config.PRESETS[name].__doc__.count("--preset " + name) == 1


def test_presets_are_made_anew_for_each_call():
    before = copy.deepcopy(config.caltech101())
    load_preset("caltech101", ["student.learning_rate=9", "pool.path=elsewhere"])
    assert config.caltech101() == before


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown preset 'caltech'; known: caltech101, demo, imagenet"):
        load_preset("caltech")


def assert_papers_student(student):
    """papers.md 7.1, items 4-6: what the two protocols share."""
    assert (student.loss_ce_weight, student.distill_temperature) == (0.5, 2.0)
    assert (student.learning_rate, student.weight_decay) == (1e-3, 1e-2)
    assert (student.image_size, student.crop_area, student.flip) == (224, (0.5, 1.0), True)


def test_caltech101_is_the_papers_protocol_for_small_datasets():
    given = load_preset("caltech101")
    assert_papers_student(given.student)
    assert given.rounds == 16  # labels C, 2C ... 16C
    assert given.selection.budget is None  # B = C
    assert (given.labels.oracle, given.labels.start) == ("simulated", "one_per_class")
    assert given.student.backbone == "resnet18.tv_in1k"
    assert (given.student.passes_labeled, given.student.steps) == (200, None)
    assert (given.student.batch_labeled, given.student.batch_unlabeled) == (64, 64)
    assert (given.student.schedule, given.student.warmup) == ("linear", 0.1)
    assert (given.student.forward, given.student.interpolation) == ("separate", "bilinear")
    assert given.student.num_workers == 1  # BatchNorm over 64
    assert (given.mixture.ce_weight, given.mixture.temperature, given.mixture.search) == (0.5, 1.0, False)
    assert (given.selection.strategy, given.selection.mixture) == ("pcoreset", "round")
    assert (given.teacher.model, given.teacher.pretrained) == ("RN50-quickgelu", "openai")
    assert given.pool.format == "coop_split"


def test_imagenet_is_the_papers_protocol():
    given = load_preset("imagenet")
    assert_papers_student(given.student)
    assert given.rounds == 8
    assert given.selection.budget == 1000
    assert len(given.classes) == 1000
    assert given.pool.limit == 100_000
    assert (given.labels.oracle, given.labels.start) == ("simulated", "one_per_class")
    assert given.student.backbone == "resnet50"
    assert given.student.passes_unlabeled == 20
    assert (given.student.batch_labeled, given.student.batch_unlabeled) == (256, 256)
    assert (given.student.schedule, given.student.warmup) == ("cosine", 0.0)
    assert (given.student.forward, given.student.interpolation) == ("stacked", "bicubic")
    assert given.student.batch_labeled // given.student.num_workers == 64  # BatchNorm over 64 + 64 a replica
    assert (given.mixture.ce_weight, given.mixture.temperature, given.mixture.search) == (0.4, 0.5, False)
    assert given.selection.mixture == (0.5, 1.0)  # queried with another combination than it is evaluated with
    assert (given.teacher.model, given.teacher.pretrained, given.teacher.templates) == (
        "RN50-quickgelu",
        "openai",
        "imagenet_7",
    )


def test_demo_is_a_whole_small_campaign():
    given = load_preset("demo")
    assert given.labels.oracle == "simulated"
    assert given.student.pretrained is False  # no download
    assert given.teacher.model.startswith("local-dir:{raykd}/")  # the same in every checkout and job
    assert Path(given.teacher.open_clip_name.removeprefix("local-dir:")).is_dir()
    assert len(given.classes) == 10


def test_a_cap_on_near_duplicates_is_given_whole():
    values = config.PRESETS["demo"]()
    with pytest.raises(ValueError, match="duplicate_cosine says which picks are near-duplicates; give max_duplicates"):
        config.load(values, ["selection.duplicate_cosine=0.9"])
    cap = config.load(values, ["selection.duplicate_cosine=0.9", "selection.max_duplicates=2"]).selection.cap
    assert (cap.limit, cap.cosine, cap.column) == (2, 0.9, "features")
