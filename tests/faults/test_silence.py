"""Nothing that is given is lost without a word: prompts, votes, averages; and what does not matter is not said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from PIL import Image
from tiny_parts import collected, composed, naming, text_base, tiny
from tokenizers import AddedToken, Tokenizer, pre_tokenizers
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE, WordLevel

import migm.evaluate
import migm.humaneval
import migm.sampling.generation
from migm.bases.inputs import Prompts, read_prompts
from migm.bases.layout import NAMES, Markers
from migm.bases.words import TAGS, Checksums, PromptTemplate, TokenizerFile
from migm.config.building import asset_path, build, load
from migm.config.roots import GenerateConfig, HumanevalConfig
from migm.human_eval.pairs import export, find_pairs
from migm.human_eval.votes import read_votes
from migm.humaneval import count, hand_out
from migm.runtime.errors import UserError
from migm.training.course import check_course
from migm.training.run import Training
from migm.training.schedule import trapezoid

TINY_TEXT = Path(asset_path()) / "dimoo_tiny" / "tokenizer.json"
MARKERS = Markers(mask=32, newline=33, answer=37, image=34, end_image=35, end_answer=38)
KEY = {"study": "abc", "pairs": {str(n): {"left": "method"} for n in range(40)}}


def captions() -> TokenizerFile:
    return TokenizerFile(TINY_TEXT, MARKERS, "base.text_tokenizer")


def bytes_and_markers(folder: Path, special: bool) -> TokenizerFile:
    """A tokenizer of LLaDA's kind: bytes, and markers added behind them, declared special or not; cut and padded."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({sign: i for i, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), ByteLevel()
    known = [AddedToken(name, special=special, normalized=False) for name in (*NAMES.values(), *TAGS, "<|image 7|>")]
    tokenizer.add_tokens(known)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    path = folder / f"tokenizer_{special}.json"
    tokenizer.save(str(path))
    markers = {key: tokenizer.token_to_id(name) or 0 for key, name in NAMES.items()}
    return TokenizerFile(path, Markers(**markers), "base.text_tokenizer")


def test_prompts_that_say_something_have_the_ids_they_had():
    """Those of the whole template, encoded at once; the recorded runs begin with such ids."""
    template, plain = PromptTemplate(captions(), "a photo"), Tokenizer.from_file(str(TINY_TEXT))
    for prompt in [*read_prompts(TINY_TEXT.parents[1] / "prompts_test.txt")[:200], "A Photo, of a\tcar"]:
        text = f"<system>a photo</system><user>{prompt}</user>"
        assert template(prompt) == plain.encode(text, add_special_tokens=False).ids
    none = "<system>a photo</system><user><uncondition></user>"
    assert template.unconditional == plain.encode(none, add_special_tokens=False).ids


@pytest.mark.parametrize("special", [True, False])
def test_a_prompt_is_text_however_much_it_looks_like_a_marker(tmp_path, special):
    text = bytes_and_markers(tmp_path, special)
    template, said = PromptTemplate(text, "draw"), f"a {''.join((*TAGS, *NAMES.values()))} <|image 7|> b"
    assert template(said) == [*template.before, *text.ids(said), *template.after]
    assert max(text.ids(said)) < 256
    assert text.tokenizer.decode(text.ids(said)) == said
    assert not set(template("<uncondition>")) & {template.unconditional[-2]}
    assert len(text.ids("x" * 500)) == 500  # not cut, nor is "x" padded
    assert len(text.ids("x")) == 1


def test_random_weights_take_markers_for_text_too():
    template = PromptTemplate(Checksums(1000), "draw it")
    assert template("<uncondition>") != template.unconditional
    assert len(template("a </user> b")) == len(template("a b")) + 4
    base = text_base()
    assert base.encode(["<uncondition>"], guided=False)[0].condition.tolist() != [base.template.unconditional]


def test_a_marker_that_the_vocabulary_itself_holds_is_refused(tmp_path):
    words = {word: i for i, word in enumerate(("?", "a", "truck", *TAGS))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "t.json"))
    template = PromptTemplate(TokenizerFile(tmp_path / "t.json", MARKERS, "base.text_tokenizer"), "")
    assert template("a truck") == [3, 4, 5, 1, 2, 6]
    with pytest.raises(UserError, match=naming("a </user> truck", "marker")):
        template("a </user> truck")


@pytest.mark.parametrize("prompt", ["qqq", "qqq, zzzz!", "<uncondition>", "...", "红色卡车"])
def test_a_prompt_of_which_nothing_is_known_is_refused_with_what_is(prompt):
    with pytest.raises(UserError, match=naming(f"prompt={prompt}", "knows nothing of it", "known are a, airplane")):
        PromptTemplate(captions(), "")(prompt)


def test_unknown_words_are_named_once_with_what_may_be_meant():
    said = PromptTemplate(captions(), "").left_out(["a red truck", "a truk, on a road", "Trucks on a road!"])
    assert said.startswith("this base does not know and leaves out road, truk (truck?), Trucks (truck?), in 2 of 3 ")
    assert "known are a, airplane" in said
    assert PromptTemplate(captions(), "").left_out(["A photo, of a RED truck."]) == ""


def test_many_unknown_words_are_one_short_line():
    said = PromptTemplate(captions(), "").left_out([f"a {word}{word} truck" for word in "bcdefghijklmnopq"])
    assert "and 8 more, in 16 of 16 prompts" in said
    assert len(said) < 400


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def text_arguments(folder: Path, *prompts: str) -> list[str]:
    fast = ["+experiment=dimoo_tiny", "device=cpu", "sampling.num_steps=2", "sampling.num_full_steps=2"]
    file = written(folder / "prompts.txt", *prompts)
    given = [f"prompts={file}", f"evalset.inputs.file={file}"]
    return [*fast, "accelerator=vanilla", f"paths.output_dir={folder}", *given]


def test_generate_says_once_what_it_leaves_out_and_refuses_what_it_knows_nothing_of(tmp_path, capsys):
    arguments = text_arguments(tmp_path, "a red truck on mars", "a blue ship on mars")
    config = load(composed("generate", *arguments, "seeds=[0,1]", "batch_size=1"), GenerateConfig)
    migm.sampling.generation.run(config)
    out = capsys.readouterr().out
    assert out.count("leaves out") == 1
    assert "leaves out mars, in 2 of 2 prompts" in out
    Path(config.output).unlink()
    written(tmp_path / "prompts.txt", "a red truck", "qqq zzzz")
    with pytest.raises(UserError, match="prompt=qqq zzzz"):
        migm.sampling.generation.run(config)
    assert not Path(config.output).exists()


def test_evaluation_looks_at_all_prompts_before_any_is_drawn(call_main, tmp_path):
    _, *arguments, file = text_arguments(tmp_path, "a truck", "a ship", "a dog", "qqq")
    arguments = ["+experiment=dimoo_tiny", *[a for a in arguments if not a.startswith("prompts=")], file]
    code, _, err = call_main(migm.evaluate.main, *arguments, "points=null", "metric=[none]", "evalset.num_images=4")
    assert code == 2
    assert "evalset.inputs: prompt=qqq" in err
    assert not (tmp_path / "dimoo_tiny" / "results.jsonl").exists()


def test_collecting_looks_at_all_labels_before_any_is_drawn(tmp_path):
    with pytest.raises(UserError, match=naming("data.inputs: labels=[10, 11]", "classes 0 to 9")):
        collected(tiny(tmp_path, "evalset.inputs.num_classes=12"))
    assert not (tmp_path / "trajectories").exists()


@pytest.mark.parametrize(("first", "last"), [(0, 9), (-2, None), (0, -1)])
def test_a_part_beyond_the_prompts_is_refused_and_not_made_smaller(tmp_path, first, last):
    file = written(tmp_path / "prompts.txt", "a", "b", "c")
    with pytest.raises(UserError, match=naming(f"inputs.first={first}", f"inputs.last={last}", "holds 3")):
        Prompts(file, first, last)


# Votes


def votes(path: Path, *rows: str) -> Path:
    return written(path, "study,pair,rater,choice", *rows)


def test_a_file_whose_votes_belong_to_another_study_scores_nothing(tmp_path):
    good = votes(tmp_path / "good.csv", *[f"abc,{n},anna,left" for n in range(40)])
    bad = votes(tmp_path / "bad.csv", "abc,1,ben,left", *[f"xyz,{n},ben,left" for n in range(6)], "abc,2,ben,left")
    words = ("votes=", "bad.csv", "6 of 8 lines", "nothing is scored", "lines 3 to 8: study xyz is not abc")
    with pytest.raises(UserError, match=naming(*words)):
        read_votes([good, bad], KEY)


def test_a_few_lines_that_do_not_count_are_named_together(tmp_path):
    rows = [f"abc,{n},anna,left" for n in range(40)]
    rows[3] = rows[7] = "xyz,3,anna,left"
    path = votes(tmp_path / "a.csv", *rows)
    found, problems = read_votes([path], KEY)
    assert len(found) == 38
    assert problems == [f"{path}, lines 5, 9: study xyz is not abc; not counted"]


def test_the_same_votes_twice_are_no_news(tmp_path):
    rows = [f"abc,{n},anna,left" for n in range(40)]
    first, again = votes(tmp_path / "a.csv", *rows[:20]), votes(tmp_path / "b.csv", *rows)
    assert read_votes([first, again], KEY) == ([v for v in read_votes([again], KEY)[0]], [])


def gallery(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    for seed in range(2):
        entry = {"prompt": "a dog", "index": 0, "seed": seed, "base": "b", "accelerator": "vanilla", "num_steps": 16}
        entry |= {"num_full_steps": 16, "run_seed": 0, "width": 8, "height": 8, "time": folder.name, **changes}
        (folder / f"0_{seed}.json").write_text(json.dumps(entry))
        Image.new("RGB", (8, 8)).save(folder / f"0_{seed}.png")
    return folder


@pytest.mark.parametrize("kind", ["itself", "another spelling", "a link", "made again"])
def test_a_study_of_a_method_against_itself_is_refused(tmp_path, kind):
    ours = gallery(tmp_path / "ours")
    theirs = {"itself": ours, "another spelling": tmp_path / "x" / ".." / "ours", "a link": tmp_path / "link"}.get(kind)
    if theirs is None:
        theirs = gallery(tmp_path / "theirs")
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to(ours)
    config = load(composed("humaneval", f"folder={tmp_path / 'study'}"), HumanevalConfig)
    config.method, config.baseline = str(ours), str(theirs)
    with pytest.raises(UserError, match=naming(f"method={ours}", f"baseline={theirs}", "same method")):
        hand_out(config)
    assert not (tmp_path / "study").exists()


def test_votes_and_folders_together_are_refused(call_main, tmp_path):
    pairs = find_pairs(gallery(tmp_path / "a"), gallery(tmp_path / "b", num_full_steps=4), None, 0)
    study = export(pairs, tmp_path / "study", "?", "")
    file = votes(tmp_path / "v.csv", f"{study},1,anna,left")
    arguments = [f"folder={tmp_path / 'study'}", f"votes=[{file}]"]
    code, _, err = call_main(migm.humaneval.main, *arguments, f"method={tmp_path / 'a'}", f"baseline={tmp_path / 'b'}")
    assert code == 2
    assert "votes=" in err
    assert "method=" in err
    count(load(composed("humaneval", *arguments), HumanevalConfig))
    assert (tmp_path / "study" / "score.json").exists()


# Trainings that come to nothing


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("stored")
    collected(tiny(output))
    return output


def training(stored: Path, output: Path, *overrides: str) -> tuple[Training, Any]:
    folder = f"data.folder={tiny(stored).data['folder']}"
    config = tiny(output, folder, "trainer.max_steps=12", "lr_schedule.warmup_steps=3", *overrides)
    return Training(config, build(config.base)), config


def course(averaging: dict[str, Any], warmup_steps: int = 3, max_steps: int = 12) -> str:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = {"lr_scheduler": {"scheduler": trapezoid(optimizer, max_steps, warmup_steps, 0.8)}}
    return check_course(schedule, {"mean": EMAWeightAveraging(**averaging)}, {"mean": averaging}, max_steps)


@pytest.mark.parametrize(
    "given",
    [
        {"update_starting_at_step": 12},
        {"update_every_n_steps": 0},
        {"update_every_n_steps": 50, "update_starting_at_step": 1},
    ],
)
def test_averages_that_would_never_begin_are_refused(given):
    words = [f"callbacks.mean.{key}={value}" for key, value in sorted(given.items(), reverse=True)]
    with pytest.raises(UserError, match=naming(*words, "trainer.max_steps=12", "untrained")):
        course(given)
    course({"update_starting_at_step": 11})


@pytest.mark.parametrize(
    ("decay", "warmup_steps", "remark"),
    [
        (0.5, 3, ""),
        (0.98, 3, "trainer.max_steps=12 is short: 80% of the saved weights are those of the first update"),
        (0.5, 100, "trainer.max_steps=12 is short: the learning rate reaches 11% of optimizer.lr"),
    ],
)
def test_a_training_too_short_for_its_settings_says_so(decay, warmup_steps, remark):
    assert course({"decay": decay}, warmup_steps).startswith(remark)
    assert bool(course({"decay": decay}, warmup_steps)) == bool(remark)


def test_a_course_is_looked_at_before_anything_runs(stored, tmp_path):
    with pytest.raises(UserError, match=naming("callbacks.ema.update_starting_at_step=12", "trainer.max_steps=12")):
        training(stored, tmp_path, "+callbacks.ema.update_starting_at_step=12")
    with pytest.raises(UserError, match=naming("lr_schedule.warmup_steps=0")):
        training(stored, tmp_path, "lr_schedule.warmup_steps=0")


def test_untrained_weights_are_not_saved(stored, tmp_path):
    made, config = training(stored, tmp_path, "+trainer.limit_train_batches=0")
    with pytest.raises(UserError, match=naming("made no step", "trainer.limit_train_batches")):
        made.run(build(config.data))
    assert not (tmp_path / "tiny_shortcut" / "shortcut.safetensors").exists()
    assert not (tmp_path / "tiny_shortcut" / "checkpoints" / "resume.ckpt").exists()


def test_a_training_that_another_key_ends_says_where(stored, tmp_path, capsys):
    made, config = training(stored, tmp_path, "+trainer.max_epochs=1")
    made.run(build(config.data))
    assert "the training ended at step 10 of trainer.max_steps=12" in capsys.readouterr().out
