import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, ModelCard, constants
from safetensors.torch import load_file
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
)

from hf_layerdrop.errors import (
    CheckpointError,
    HubError,
    KeepLayersError,
    OutputExistsError,
    TaskError,
    UnsupportedModelError,
)
from hf_layerdrop.hub.push import push_pruned_to_hub
from hf_layerdrop.hub.save import save_pruned
from hf_layerdrop.hub.serve import pipeline
from hf_layerdrop.models.named import LayerDropBertModel
from hf_layerdrop.pruning.prune import prune_layers
from hf_layerdrop.reports.card import MeasuredOn
from hf_layerdrop.results.record import SubNetworkResult
from hub_server import READ_TOKEN, WRITE_TOKEN, HubServer

REPO = "alice/small"
KEEP = [0, 2]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "film", "a", "not"]
SENTENCE = "a good film"
INPUT_IDS = torch.tensor([[2, 8, 5, 7, 3], [2, 8, 9, 5, 3]])
RESULTS = [
    SubNetworkResult({"encoder": kept}, 1000 * len(kept), {"accuracy": accuracy}, 0.01 * len(kept), 4)
    for kept, accuracy in (((0,), 0.5), ((0, 2), 0.75), ((0, 1, 2, 3), 0.875))
]
TINY = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}


def tiny_classifier():
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(WORDS), initializer_range=0.4, num_labels=2, **TINY)
    return BertForSequenceClassification(config).eval()


def tiny_tokenizer(folder):
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return BertTokenizer(vocab=str(folder / "vocab.txt"))


@pytest.fixture
def source(tmp_path):
    """A checkpoint folder with a tokenizer, a card of its own, and leftovers of training that nobody should publish."""
    folder = tmp_path / "private-home" / "sst2"
    tiny_classifier().save_pretrained(folder)
    tiny_tokenizer(folder).save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model: google-bert/bert-base-uncased\n---\nMine.\n")
    (folder / "training_args.bin").write_bytes(b"secret")
    (folder / "optimizer.pt").write_bytes(b"secret")
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer() as server:
        server.use_in_process(monkeypatch, tmp_path / "hf_home")
        yield server


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=INPUT_IDS).logits


def cut(model, keep_layers=KEEP):
    prune_layers(model, keep_layers)
    return model


def files_in(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()
    }


# save


@pytest.mark.parametrize("in_memory", [True, False])
def test_saved_folder_is_the_sub_network_in_plain_transformers(source, tmp_path, in_memory):
    full = BertForSequenceClassification.from_pretrained(source)
    model = full if in_memory else source
    saved = save_pruned(model, tmp_path / "small", keep_layers=KEEP)
    again = BertForSequenceClassification.from_pretrained(saved)
    assert again.config.num_hidden_layers == 2
    assert torch.equal(logits_of(again), logits_of(cut(tiny_classifier())))
    assert not torch.equal(logits_of(again), logits_of(full))
    assert not torch.equal(logits_of(again), logits_of(cut(tiny_classifier(), [0, 3])))


def test_model_in_memory_is_left_unchanged(tmp_path):
    model = tiny_classifier()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    config, logits = model.config.to_dict(), logits_of(model)
    save_pruned(model, tmp_path / "small", keep_layers=2, tokenizer=tiny_tokenizer(tmp_path))
    assert model.config.to_dict() == config
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(logits_of(model), logits)


def test_folder_holds_what_is_needed_and_nothing_else(source, tmp_path):
    saved = save_pruned(source, tmp_path / "small", keep_layers=KEEP, results=RESULTS)
    assert {path.name for path in saved.iterdir()} == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
        "README.md",
        "depth.png",
        "depth.svg",
    }
    assert (saved / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
    assert saved.stat().st_mode == source.stat().st_mode
    text = b"".join(content for name, content in files_in(saved).items() if not name.endswith((".safetensors", ".png")))
    assert b"private-home" not in text


def test_generation_config_comes_along(tmp_path):
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=20, d_model=16, encoder_layers=4, decoder_layers=4, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=2, decoder_attention_heads=2, init_std=0.4, max_position_embeddings=64, num_beams=3,
    )  # fmt: skip
    model = BartForConditionalGeneration(config).eval()
    model.generation_config.max_length = 11
    saved = save_pruned(model, tmp_path / "bart", keep_layers="encoder=0,3;decoder=1,", overwrite=True)
    again = BartForConditionalGeneration.from_pretrained(saved)
    assert again.generation_config.max_length == 11
    expected = cut(model, {"encoder": [0, 3], "decoder": [1]}).generate(INPUT_IDS)
    assert torch.equal(again.generate(INPUT_IDS), expected)
    assert "encoder 0, 3; decoder 1" in (saved / "README.md").read_text()


def test_existing_folder_is_refused_before_anything_is_loaded(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"small.*exists already"):
        save_pruned("no/such-model", folder, keep_layers=2)
    with pytest.raises(OutputExistsError, match="not a checkpoint folder"):
        save_pruned("no/such-model", folder, keep_layers=2, overwrite=True)
    assert files_in(tmp_path) == {"small/mine.txt": b"mine"}


def test_overwrite_replaces_the_whole_folder(source, tmp_path):
    saved = save_pruned(source, tmp_path / "small", keep_layers=KEEP)
    (saved / "left-over.json").write_text("{}")
    save_pruned(source, saved, keep_layers=1, overwrite=True)
    assert json.loads((saved / "config.json").read_text())["num_hidden_layers"] == 1
    assert not (saved / "left-over.json").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"small", "private-home"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_failure_leaves_everything_as_it_was(source, tmp_path, overwrite):
    if overwrite:
        save_pruned(source, tmp_path / "small", keep_layers=KEEP)
    before = files_in(tmp_path)
    with pytest.raises(KeepLayersError):
        save_pruned(source, tmp_path / "small", keep_layers=[0, 9], overwrite=overwrite)
    with pytest.raises(CheckpointError, match="does not exist"):  # fails after the weights were written
        save_pruned(source, tmp_path / "small", keep_layers=KEEP, plot=tmp_path / "no.png", overwrite=overwrite)
    assert files_in(tmp_path) == before


def test_without_a_tokenizer_nothing_is_written_unless_that_is_wanted(tmp_path):
    tiny_classifier().save_pretrained(tmp_path / "bare")
    with pytest.raises(CheckpointError, match="No tokenizer was found"):
        save_pruned(tmp_path / "bare", tmp_path / "small", keep_layers=KEEP)
    assert [path.name for path in tmp_path.iterdir()] == ["bare"]
    saved = save_pruned(tmp_path / "bare", tmp_path / "small", keep_layers=KEEP, tokenizer=False)
    assert not list(saved.glob("*token*"))


def test_folders_above_a_refused_one_are_not_made(source, tmp_path):
    tiny_classifier().save_pretrained(tmp_path / "bare")
    (tmp_path / "used").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for model, keep_layers in ((source, "9"), (tmp_path / "bare", "2"), (tmp_path / "none", "2")):
        for above in ("new/deep", "used/new"):
            with pytest.raises((KeepLayersError, CheckpointError)):
                save_pruned(model, tmp_path / above / "small", keep_layers=keep_layers)
            assert sorted(tmp_path.rglob("*")) == before
    assert save_pruned(source, tmp_path / "new/deep/small", keep_layers=2).is_dir()


def test_a_folder_below_a_file_is_refused_before_the_work(source, tmp_path):
    with pytest.raises(OutputExistsError, match=r"config\.json' is a file and not a folder"):
        save_pruned(source, source / "config.json" / "deep/small", keep_layers=9)


@pytest.mark.parametrize("name", ["./none", "none/of/these", "/none", "alice/none"])
def test_what_does_not_exist_is_told_alike_everywhere(name, hub, tmp_path):
    """By the loader, the saver and the pipeline, with a tokenizer or without; the second form is that of the Hub."""
    found = "404|not a valid model identifier" if name == "alice/none" else "Repo id|repo_id|Incorrect path"
    said = f"'{name}' is neither a local folder nor .*({found})"
    for call in (
        lambda: LayerDropBertModel.from_pretrained(name, keep_layers=2),
        lambda: LayerDropBertModel.from_pretrained(name),
        lambda: save_pruned(name, tmp_path / "small", keep_layers=2),
        lambda: save_pruned(name, tmp_path / "small", keep_layers=2, tokenizer=False),
        lambda: pipeline("text-classification", name, keep_layers=2),
    ):
        with pytest.raises(CheckpointError, match=said) as error:
            call()
        assert "\n" not in str(error.value)
    assert not (tmp_path / "small").exists()


def test_a_model_that_is_not_in_the_cache_is_told_when_offline(hub, source):
    hub.add_folder("alice/full", source)
    with pytest.raises(CheckpointError, match=r"alice/full.*(local_files_only|disabled|offline)"):
        LayerDropBertModel.from_pretrained("alice/full", keep_layers=2, local_files_only=True)


def test_the_checkpoint_that_is_cut_is_never_overwritten(source, tmp_path):
    before = (source / "model.safetensors").read_bytes()
    with pytest.raises(OutputExistsError, match="is the checkpoint that is read"):
        save_pruned(source, source, keep_layers=KEEP, overwrite=True)
    assert (source / "model.safetensors").read_bytes() == before


def test_a_given_plot_is_copied_with_its_twin(source, tmp_path):
    for suffix in ("png", "svg"):
        (tmp_path / f"mine.{suffix}").write_bytes(suffix.encode())
    saved = save_pruned(source, tmp_path / "small", keep_layers=KEEP, results=RESULTS, plot=tmp_path / "mine.png")
    assert (saved / "mine.png").read_bytes() == b"png"
    assert (saved / "mine.svg").read_bytes() == b"svg"
    assert "](mine.png)" in (saved / "README.md").read_text()
    assert not (saved / "depth.png").exists()
    plain = save_pruned(source, tmp_path / "plain", keep_layers=KEEP, results=RESULTS, plot=False)
    assert "![" not in (plain / "README.md").read_text()


def test_card_of_a_saved_folder(source, tmp_path):
    saved = save_pruned(
        source,
        tmp_path / "small",
        keep_layers=KEEP,
        results=RESULTS,
        measured_on=MeasuredOn("glue", "sst2", "validation"),
    )
    data = ModelCard.load(saved / "README.md").data
    assert (data.license, data.base_model, data.pipeline_tag) == (
        "mit",
        "google-bert/bert-base-uncased",
        "text-classification",
    )
    assert [(entry.metric_type, entry.metric_value, entry.dataset_config) for entry in data.eval_results] == [
        ("accuracy", 0.75, "sst2")
    ]


def test_what_is_not_a_model_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="Linear is neither"):
        save_pruned(torch.nn.Linear(2, 2), tmp_path / "small", keep_layers=1)
    with pytest.raises(TypeError, match="dtype, revision"):
        save_pruned(tiny_classifier(), tmp_path / "small", keep_layers=1, dtype="auto", revision="main")
    assert not list(tmp_path.iterdir())


# push


def test_push_makes_the_repository_and_one_commit(hub, source):
    info = push_pruned_to_hub(source, REPO, keep_layers=KEEP, results=RESULTS)
    repo = hub.repos[REPO]
    assert len(repo.commits) == 2  # the first is the Hub's own
    assert info.oid == repo.branches["main"]
    assert not repo.private
    files = repo.files()
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "depth.png"} <= files.keys()
    assert "training_args.bin" not in files
    assert files["tokenizer.json"] == (source / "tokenizer.json").read_bytes()
    for name, content in files.items():
        assert WRITE_TOKEN.encode() not in content, name
        assert name.endswith(".png") or b"private-home" not in content, name


def test_pushed_files_equal_the_saved_ones(hub, source, tmp_path):
    push_pruned_to_hub(source, REPO, keep_layers=KEEP, results=RESULTS)
    saved = files_in(save_pruned(source, tmp_path / REPO.split("/")[1], keep_layers=KEEP, results=RESULTS))
    pushed = {name: content for name, content in hub.repos[REPO].files().items() if name != ".gitattributes"}
    assert pushed.keys() == saved.keys()
    assert {name for name in saved if saved[name] != pushed[name]} == {"README.md"}  # it names the repository
    assert pushed["README.md"].decode() == saved["README.md"].decode().replace('"small"', f'"{REPO}"')


def test_a_stranger_loads_it_without_this_package(hub, source, tmp_path):
    """In a process where importing hf_layerdrop fails: the same logits, and a working pipeline."""
    push_pruned_to_hub(source, REPO, keep_layers=KEEP)
    code = f"""
import sys, json
sys.modules["hf_layerdrop"] = None
import torch
from transformers import AutoModelForSequenceClassification, pipeline
model = AutoModelForSequenceClassification.from_pretrained({REPO!r}).eval()
logits = model(input_ids=torch.tensor({INPUT_IDS.tolist()})).logits
answer = pipeline("text-classification", model={REPO!r})({SENTENCE!r})
print(json.dumps([type(model).__module__, logits.tolist(), answer]))
"""
    env = hub.env(tmp_path / "stranger", token=None)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    module, logits, answer = json.loads(done.stdout.splitlines()[-1])
    assert module.startswith("transformers.")
    assert torch.equal(torch.tensor(logits), logits_of(cut(tiny_classifier())))
    assert answer[0]["label"] in ("LABEL_0", "LABEL_1")


def test_card_on_the_hub_is_valid_and_names_the_repository(hub, source):
    push_pruned_to_hub(source, REPO, keep_layers=KEEP, results=RESULTS, measured_on=MeasuredOn("glue", "sst2"))
    text = hub.repos[REPO].files()["README.md"].decode()
    assert f'pipeline("text-classification", model="{REPO}")' in text
    index = yaml.safe_load(text.split("---")[1])["model-index"][0]
    assert index["name"] == "small"
    assert index["results"][0]["task"]["type"] == "text-classification"
    assert index["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.75, "name": "Accuracy"}]
    assert "| **2** | **0, 2** |" in text
    assert any(request.path == "/api/validate-yaml" for request in hub.requests)


def test_private_and_bare_names(hub):
    push_pruned_to_hub(tiny_classifier(), "small", keep_layers=2, private=True, commit_message="Mine")
    assert hub.repos[REPO].private
    assert [commit.title for commit in hub.repos[REPO].commits.values()][-1] == "Mine"


def test_an_existing_repository_gets_one_commit_and_keeps_other_files(hub):
    hub.add_repo(REPO, {"notes.md": b"mine", "model-00001-of-00002.safetensors": b"old", "pytorch_model.bin": b"old"})
    push_pruned_to_hub(tiny_classifier(), REPO, keep_layers=2)
    repo = hub.repos[REPO]
    assert len(repo.commits) == 2
    assert repo.files()["notes.md"] == b"mine"
    weights = [name for name in repo.files() if name.endswith((".safetensors", ".bin"))]
    assert weights == ["model.safetensors"]  # an old shard or pickle would be another model's


def test_an_existing_repository_can_be_refused(hub):
    hub.add_repo(REPO)
    with pytest.raises(HubError, match=r"exists already \(409\).*nothing was committed"):
        push_pruned_to_hub(tiny_classifier(), REPO, keep_layers=2, exist_ok=False)
    with pytest.raises(HubError, match="is public, so nothing was committed"):
        push_pruned_to_hub(tiny_classifier(), REPO, keep_layers=2, private=True)
    assert len(hub.repos[REPO].commits) == 1


def test_branch_and_pull_request_leave_main_alone(hub):
    repo = hub.add_repo(REPO)
    push_pruned_to_hub(tiny_classifier(), REPO, keep_layers=2, branch="depth-2")
    info = push_pruned_to_hub(tiny_classifier(), REPO, keep_layers=1, create_pr=True)
    assert info.pr_url.endswith(f"{REPO}/discussions/1")
    assert set(repo.files()) == {".gitattributes"}
    depths = [json.loads(repo.files(ref)["config.json"])["num_hidden_layers"] for ref in ("depth-2", "refs/pr/1")]
    assert depths == [2, 1]


@pytest.mark.parametrize("repo_id", ["a/b/c", "alice/with space", "", "-a", "alice/" + "x" * 120])
def test_impossible_names_are_refused_before_the_hub_is_asked(hub, repo_id):
    with pytest.raises(HubError, match="cannot be the name") as caught:
        push_pruned_to_hub("no/such-model", repo_id, keep_layers=2)
    assert isinstance(caught.value, ValueError)
    assert not hub.requests


@pytest.mark.parametrize(
    ("token", "message"),
    [("hf_thisTokenIsNotKnown", r"did not accept the token \(401\).*log in"), (READ_TOKEN, "may only read")],
)
def test_tokens_that_cannot_write_are_refused_before_anything_is_loaded(hub, token, message):
    with pytest.raises(HubError, match=message) as caught:
        push_pruned_to_hub("no/such-model", REPO, keep_layers=2, token=token)
    assert "nothing was committed" in str(caught.value)
    assert token not in str(caught.value)
    assert not hub.repos
    assert {request.path for request in hub.requests} == {"/api/whoami-v2"}


def test_no_token_at_all(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=r"no Hub token.*log in"):
        push_pruned_to_hub("no/such-model", REPO, keep_layers=2)


def test_token_argument_wins(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    push_pruned_to_hub(tiny_classifier(), REPO, keep_layers=2, token=WRITE_TOKEN)
    writes = [request for request in hub.requests if request.method == "POST" and request.path.startswith("/api/")]
    assert {request.headers["authorization"] for request in writes} == {f"Bearer {WRITE_TOKEN}"}


FAULTS = [
    (r"/api/repos/create", 403, r"may not write to 'alice/small' \(403\).*write permission"),
    (r"/api/repos/create", 503, r"Hub failed \(503\).*try again"),
    (r"/api/repos/create", None, r"could not be reached.*try again"),
    (r"/preupload/", 404, r"no repository 'alice/small' \(404\)"),
    (r"/objects/batch", 403, r"may not write"),
    (r"/lfs/[0-9a-f]{64}", 403, r"may not write"),
    (r"/commit/", 401, r"did not accept the token \(401\)"),
    (r"/commit/", 403, r"may not write"),
    (r"/commit/", 409, r"\(409\)"),
    (r"/commit/", 412, r"Someone else committed.*\(412\)"),
    (r"/commit/", 429, r"fewer requests \(429\)"),
    (r"/commit/", 500, r"Hub failed \(500\).*try again"),
    (r"/commit/", None, r"could not be reached"),
]


@pytest.mark.parametrize(("path", "status", "message"), FAULTS)
def test_a_failed_push_commits_nothing_and_says_what_to_do(hub, path, status, message):
    repo = hub.add_repo(REPO, {"notes.md": b"mine"})
    hub.fail(path, status)
    with pytest.raises(HubError, match=message) as caught:
        push_pruned_to_hub(tiny_classifier(), REPO, keep_layers=2, exist_ok="create" not in path)
    text = str(caught.value)
    assert "nothing was committed" in text
    assert "\n" not in text
    assert WRITE_TOKEN not in text
    assert repo.files() == {"notes.md": b"mine"}
    assert len(repo.commits) == 1


def test_a_passing_fault_of_an_upload_is_retried(hub):
    hub.fail(r"/lfs/[0-9a-f]{64}", 503)
    push_pruned_to_hub(tiny_classifier(), REPO, keep_layers=2)
    assert "model.safetensors" in hub.repos[REPO].files()


@pytest.mark.parametrize("status", [None, 502])
def test_a_commit_whose_answer_was_lost_is_not_called_uncommitted(hub, status):
    hub.fail(r"/commit/", status, after_handling=True)
    with pytest.raises(HubError, match=r"answer was lost.*has the new commit") as caught:
        push_pruned_to_hub(tiny_classifier(), REPO, keep_layers=2)
    assert hub.repos[REPO].branches["main"] in str(caught.value)
    assert "nothing was committed" not in str(caught.value)


def test_a_hub_that_vanishes_during_the_commit_leaves_the_question_open(hub):
    repo = hub.add_repo(REPO)
    hub.cut(r"/commit/")
    hub.fail(rf"/api/models/{REPO}", 503, times=5, after="/commit/")
    with pytest.raises(HubError, match="may have it or not"):
        push_pruned_to_hub(tiny_classifier(), REPO, keep_layers=2)
    assert len(repo.commits) == 1


def test_nobody_listens(monkeypatch, tmp_path):
    with HubServer() as server:
        server.use_in_process(monkeypatch, tmp_path)
    with pytest.raises(HubError, match=r"could not be reached, so nothing was committed.*HF_ENDPOINT"):
        push_pruned_to_hub("no/such-model", REPO, keep_layers=2)


def test_offline_mode(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match=r"Offline mode is on, so nothing was committed.*HF_HUB_OFFLINE"):
        push_pruned_to_hub("no/such-model", REPO, keep_layers=2)


def test_wrong_layers_touch_nothing_on_the_hub(hub):
    with pytest.raises(KeepLayersError):
        push_pruned_to_hub(tiny_classifier(), REPO, keep_layers=[0, 9])
    assert not hub.repos


def test_from_hub_to_hub(hub, source):
    """The source is a repository: tokenizer and licence come along, and the card links its commit."""
    repo = hub.add_folder("alice/full", source, private=True)
    push_pruned_to_hub("alice/full", REPO, keep_layers=KEEP, token=WRITE_TOKEN)
    card = ModelCard(hub.repos[REPO].files()["README.md"].decode())
    assert (card.data.base_model, card.data.license) == ("alice/full", "mit")
    assert repo.branches["main"] in card.text
    assert hub.repos[REPO].files()["vocab.txt"] == (source / "vocab.txt").read_bytes()
    assert not any(WRITE_TOKEN.encode() in content for content in hub.repos[REPO].files().values())
    asked = {request.path for request in hub.requests if "/alice/full/resolve/" in request.path}
    assert not any(re.search("training_args|optimizer", path) for path in asked)


# serve


def test_pipeline_runs_the_sub_network(source, tmp_path):
    shallow = pipeline("text-classification", source, keep_layers=KEEP, top_k=None)
    plain = pipeline("text-classification", save_pruned(source, tmp_path / "small", keep_layers=KEEP), top_k=None)
    assert shallow.model.config.num_hidden_layers == 2
    assert shallow(SENTENCE) == plain(SENTENCE)
    assert shallow(SENTENCE) != pipeline("text-classification", source, top_k=None)(SENTENCE)
    assert shallow(SENTENCE) != pipeline("text-classification", source, keep_layers=[0, 3], top_k=None)(SENTENCE)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_pipeline_passes_the_dtype_on_by_both_of_its_names(name, source):
    served = pipeline("text-classification", source, keep_layers=KEEP, **{name: torch.bfloat16})
    assert served.model.dtype == torch.bfloat16


def test_pipeline_takes_the_class_that_fits_the_task(source):
    features = pipeline("feature-extraction", str(source), keep_layers=KEEP)
    assert type(features.model) is BertModel
    assert len(features(SENTENCE)[0][0]) == TINY["hidden_size"]


def test_pipeline_of_a_model_in_memory_leaves_it_unchanged(source, tmp_path):
    model = tiny_classifier()
    tokenizer = tiny_tokenizer(tmp_path)
    shallow = pipeline("text-classification", model, keep_layers=KEEP, tokenizer=tokenizer)
    assert shallow.model.config.num_hidden_layers == 2
    assert model.config.num_hidden_layers == len(model.bert.encoder.layer) == 4
    assert shallow(SENTENCE) == pipeline("text-classification", source, keep_layers=KEEP)(SENTENCE)


def test_pipeline_from_the_hub_passes_the_revision_on(hub, source):
    repo = hub.add_folder("alice/full", source)
    first = repo.branches["main"]
    repo.commit("broken", {"config.json": b"{}"})
    assert pipeline("text-classification", "alice/full", keep_layers=KEEP, revision=first)(SENTENCE)


def test_pipeline_errors(source):
    with pytest.raises(TaskError, match=r"'no-task' is not a task.*text-classification"):
        pipeline("no-task", source, keep_layers=2)
    with pytest.raises(UnsupportedModelError, match=r"'bert'.*'image-classification'"):
        pipeline("image-classification", source, keep_layers=2)


def test_pipeline_without_a_tokenizer_is_refused(source, hub, tmp_path):
    """Transformers would make an empty one of a BERT's config, and score every sentence alike."""
    bare = tmp_path / "bare"
    tiny_classifier().save_pretrained(bare)
    hub.add_folder("alice/bare", bare)
    for name in (bare, "alice/bare"):
        with pytest.raises(CheckpointError, match="has no tokenizer"):
            pipeline("text-classification", name, keep_layers=KEEP)
    given = pipeline("text-classification", bare, keep_layers=KEEP, tokenizer=tiny_tokenizer(tmp_path))
    assert given(SENTENCE) == pipeline("text-classification", source, keep_layers=KEEP)(SENTENCE)


# the server itself, which later tests lean on


def test_server_serves_ranges(hub):
    content = bytes(range(256)) * 4
    hub.add_repo(REPO, {"model.safetensors": content})
    from huggingface_hub.utils import get_session

    url = f"{hub.url}/{REPO}/resolve/main/model.safetensors"
    for header, expected in (
        ("bytes=8-15", content[8:16]),
        ("bytes=1000-", content[1000:]),
        ("bytes=-4", content[-4:]),
    ):
        answer = get_session().get(url, headers={"Range": header})
        assert (answer.status_code, answer.content) == (206, expected)
        assert answer.headers["Content-Range"].endswith("/1024")
    assert get_session().get(url, headers={"Range": "bytes=2000-"}).status_code == 416
    assert sum(request.sent for request in hub.requests if request.headers.get("range", "").startswith("bytes=8")) == 8


def test_server_hides_private_repositories(hub):
    hub.add_repo(REPO, private=True)
    assert HfApi(token=WRITE_TOKEN).repo_exists(REPO)
    assert not HfApi(token=False).repo_exists(REPO)


def test_server_files_are_what_the_client_downloads(hub, source):
    hub.add_folder("alice/full", source)
    path = HfApi().hf_hub_download("alice/full", "model.safetensors")
    assert load_file(path).keys() == load_file(source / "model.safetensors").keys()
