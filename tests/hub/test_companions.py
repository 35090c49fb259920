"""Files beside the weights that make a model what it is come along: from a folder, from the Hub, and to the Hub."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    PreTrainedTokenizerFast,
    ProphetNetTokenizer,
)

from conftest import build
from hf_layerdrop import prune_layers, push_pruned_to_hub, save_pruned
from hf_layerdrop.checkpoints.tokenizers import processor_files
from hf_layerdrop.cli import run
from hf_layerdrop.errors import CheckpointError, UnsupportedModelError
from hub_server import HubServer

SENTENCES = ["a man plays the guitar", "the dog sleeps", "a child reads a book"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in SENTENCES for word in text.split()})]
REPO, KEPT = "alice/source", [0, 2]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with HubServer() as server:
        server.use_in_process(monkeypatch, tmp_path / "home")
        yield server


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), initializer_range=0.4, **shape)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizer(vocab=str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    return folder


def from_folder(source, out, hub):
    return save_pruned(source, out, keep_layers=KEPT)


def from_hub(source, out, hub):
    files = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()}
    hub.add_repo(REPO, files)
    return save_pruned(REPO, out, keep_layers=KEPT)


def in_memory(source, out, hub):
    return save_pruned(BertModel.from_pretrained(source), out, keep_layers=KEPT)


def with_a_tokenizer(source, out, hub):
    return save_pruned(source, out, keep_layers=KEPT, tokenizer=AutoTokenizer.from_pretrained(source))


def prune_command(source, out, hub):
    assert run(["prune", str(source), "--keep-layers", "0,2", "--output", str(out)]) == 0
    return out


def to_hub(source, out, hub):
    push_pruned_to_hub(source, "alice/small", keep_layers=KEPT)
    return downloaded(hub, out)


def downloaded(hub, out):
    for name, content in hub.repos["alice/small"].files().items():
        if name != ".gitattributes":
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_bytes(content)
    return out


DOORS = [from_folder, from_hub, in_memory, with_a_tokenizer, prune_command, to_hub]


# --- Sentence Transformers -------------------------------------------------------------------------


def sentence_transformer(folder, pooling, *more):
    library = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer import modules

    transformer = modules.Transformer(str(folder), max_seq_length=7)
    chosen = [transformer, modules.Pooling(16, pooling_mode=pooling), *(make(modules) for make in more)]
    return library.SentenceTransformer(modules=chosen, device="cpu", prompts={"query": "the "})


def dense(modules):
    torch.manual_seed(1)
    return modules.Dense(16, 8)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("pooling", "more"), [("cls", []), ("max", [lambda modules: modules.Normalize()]), ("mean", [dense])]
)
def test_a_sentence_transformer_is_one_after_a_cut(pooling, more, door, source, hub, tmp_path, capsys):
    library = pytest.importorskip("sentence_transformers")
    whole = sentence_transformer(source, pooling, *more)
    whole.save(str(tmp_path / "encoder"))
    small = door(tmp_path / "encoder", tmp_path / "small", hub)
    again = library.SentenceTransformer(str(small), device="cpu")
    before = whole.encode(SENTENCES, prompt_name="query")
    prune_layers(whole, KEPT)
    assert (again.encode(SENTENCES, prompt_name="query") == whole.encode(SENTENCES, prompt_name="query")).all()
    assert abs(again.encode(SENTENCES, prompt_name="query") - before).max() > 1e-3
    assert again.max_seq_length == 7
    assert run(["inspect", str(small)]) == 0
    card = ModelCard.load(small / "README.md")
    name = "alice/small" if door is to_hub else "small"
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert set(card.data.tags) == {"sentence-transformers", "sentence-similarity", "layerdrop", "pruned", "bert"}
    assert "from sentence_transformers import SentenceTransformer" in card.text
    assert f'model = SentenceTransformer("{name}")' in card.text
    assert "nothing but transformers" not in card.text
    save_pruned(source, small, keep_layers=KEPT, overwrite=True)  # what a save made may be replaced


@pytest.mark.parametrize(("said", "task"), [("SparseEncoder", "feature-extraction"), ("CrossEncoder", "text-ranking")])
def test_the_card_shows_the_class_of_other_models_of_sentence_transformers(said, task, source, tmp_path):
    (source / "modules.json").write_text('[{"path": "", "type": "sentence_transformers.models.Transformer"}]')
    (source / "config_sentence_transformers.json").write_text(json.dumps({"model_type": said}))
    card = ModelCard.load(from_folder(source, tmp_path / "small", None) / "README.md")
    assert card.data.pipeline_tag == task
    assert f'model = {said}("small")' in card.text


@pytest.mark.parametrize("modules", [None, "[]", "{"])
def test_the_card_of_any_other_model_shows_transformers(modules, source, tmp_path):
    if modules is not None:
        (source / "modules.json").write_text(modules)
    (source / "README.md").write_text("---\nlibrary_name: sentence-transformers\nlicense: mit\n---\n")
    card = ModelCard.load(from_folder(source, tmp_path / "small", None) / "README.md")
    assert (card.data.library_name, card.data.license) == ("transformers", "mit")
    assert "nothing but transformers is needed" in card.text


def test_a_pooling_that_weighs_each_layer_is_refused(source, tmp_path):
    whole = sentence_transformer(source, "mean")
    whole.save(str(tmp_path / "encoder"))
    listed = json.loads((tmp_path / "encoder/modules.json").read_text())
    weighing = {**listed[1], "type": "sentence_transformers.models.WeightedLayerPooling"}
    (tmp_path / "encoder/modules.json").write_text(json.dumps([listed[0], weighing]))
    with pytest.raises(UnsupportedModelError, match="WeightedLayerPooling, with a weight for each layer"):
        save_pruned(tmp_path / "encoder", tmp_path / "small", keep_layers=KEPT)
    save_pruned(tmp_path / "encoder", tmp_path / "small", keep_layers=None)


@pytest.mark.parametrize(
    "modules",
    [
        *("[", "3", "[3]", '[{"path": 3}]', '[{"path": ["x"]}]', "[" * 5000),
        *('[{"path": "../secret"}]', '[{"path": ".git"}]', '[{"path": "a/../.git"}]'),
        *('[{"path": "."}]', '[{"path": "/etc"}]'),
    ],
)
def test_modules_of_a_stranger_lead_nowhere(modules, source, tmp_path):
    for folder in (tmp_path / "secret", source / ".git", source / "x"):
        folder.mkdir()
        (folder / "config.json").write_text("secret")
    (source / "modules.json").write_text(modules)
    small = from_folder(source, tmp_path / "small", None)
    assert not [path for path in small.rglob("*") if path.is_file() and path.read_bytes() == b"secret"]


def test_links_out_of_a_module_are_left_out(source, tmp_path, caplog):
    (tmp_path / "id_rsa").write_text("secret")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling/config.json").symlink_to(tmp_path / "id_rsa")
    (source / "2_Dense").symlink_to(tmp_path)
    (tmp_path / "config.json").write_text("secret")
    listed = [{"path": "1_Pooling", "type": "x"}, {"path": "2_Dense", "type": "y"}]
    (source / "modules.json").write_text(json.dumps(listed))
    (source / "LICENSE").symlink_to(tmp_path / "id_rsa")
    (source / "stolen.py").symlink_to(tmp_path / "id_rsa")
    small = from_folder(source, tmp_path / "small", None)
    assert not [path for path in small.rglob("*") if path.is_file() and path.read_bytes() == b"secret"]
    assert caplog.text.count("leads out of the checkpoint") == 4


# --- Tokenizers, licences, code --------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_licences_and_code_come_along_and_are_not_run(door, source, hub, tmp_path):
    (source / "LICENSE").write_text("Do what you like.")
    (source / "NOTICE.txt").write_text("Noted.")
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n")
    marker = tmp_path / "ran"
    (source / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (source / "helpers.py").write_text("")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling_own.OwnModel"}}))
    small = door(source, tmp_path / "small", hub)
    for name in ("LICENSE", "NOTICE.txt", "modeling_own.py", "helpers.py"):
        assert (small / name).read_bytes() == (source / name).read_bytes(), name
    assert "license_link: LICENSE" in (small / "README.md").read_text()
    assert not marker.exists()
    if door is from_folder:
        door(source, tmp_path / "again", hub)
        save_pruned(source, small, keep_layers=KEPT, overwrite=True)


def test_a_script_that_no_config_names_stays_where_it_is(source, tmp_path):
    (source / "train.py").write_text("")
    assert not (from_folder(source, tmp_path / "small", None) / "train.py").exists()


@pytest.mark.parametrize("door", [from_folder, from_hub, to_hub])
def test_the_files_that_a_tokenizer_class_names_come_along(door, source, hub, tmp_path):
    for name in ("vocab.txt", "tokenizer.json", "tokenizer_config.json"):
        (source / name).unlink(missing_ok=True)
    (source / "prophetnet.tokenizer").write_text("\n".join(WORDS))
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ProphetNetTokenizer"}))
    small = door(source, tmp_path / "small", hub)
    assert (small / "prophetnet.tokenizer").read_bytes() == (source / "prophetnet.tokenizer").read_bytes()
    again = ProphetNetTokenizer.from_pretrained(small)
    assert again(SENTENCES[0])["input_ids"] == ProphetNetTokenizer.from_pretrained(source)(SENTENCES[0])["input_ids"]


def test_every_tokenizer_of_transformers_has_its_files_taken_along(tmp_path):
    """By what each class says itself: none is in a list of ours."""
    import transformers
    from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES

    names = {
        name for known in TOKENIZER_MAPPING_NAMES.values() for name in (known if isinstance(known, tuple) else [known])
    }
    checked = 0
    for name in sorted(filter(None, names)):
        cls = getattr(transformers, name, None)
        files = getattr(cls, "vocab_files_names", None)
        if not isinstance(cls, type) or not files:
            continue
        folder = tmp_path / name
        folder.mkdir()
        for file in files.values():
            (folder / file).write_text("x")
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
        assert {path.name for path in processor_files(folder)} >= set(files.values()), name
        shutil.rmtree(folder)
        checked += 1
    assert checked > 50


@pytest.mark.parametrize("door", [from_folder, from_hub, to_hub])
def test_chat_templates_processors_and_generation_settings_come_along(door, hub, tmp_path):
    source = tmp_path / "source"
    model = build("BartForConditionalGeneration")
    model.generation_config.max_length = 17
    model.save_pretrained(source)
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    saved = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    saved.chat_template = {"default": "{{ messages }}", "tools": "{{ tools }}"}
    saved.save_pretrained(source)
    (source / "preprocessor_config.json").write_text("{}")
    (source / "video_preprocessor_config.json").write_text("{}")
    small = tmp_path / "small"
    if door is from_hub:
        files = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if path.is_file()}
        hub.add_repo(REPO, files)
    if door is to_hub:
        push_pruned_to_hub(source, "alice/small", keep_layers={"encoder": 2})
        downloaded(hub, small)
    else:
        save_pruned(REPO if door is from_hub else source, small, keep_layers={"encoder": 2})
    again = AutoTokenizer.from_pretrained(small)
    assert again.chat_template == saved.chat_template
    assert again(SENTENCES[0])["input_ids"] == saved(SENTENCES[0])["input_ids"]
    assert json.loads((small / "generation_config.json").read_text())["max_length"] == 17
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        assert (small / name).is_file()


def test_what_lies_in_the_subfolder_of_a_hub_repository_comes_along(source, hub, tmp_path):
    (source / "1_Dense").mkdir()
    save_file({"linear.weight": torch.ones(2, 2)}, source / "1_Dense/model.safetensors")
    (source / "modules.json").write_text(
        json.dumps([{"path": "1_Dense", "type": "sentence_transformers.models.Dense"}])
    )
    files = {f"inner/{path.relative_to(source)}": path.read_bytes() for path in source.rglob("*") if path.is_file()}
    hub.add_repo(REPO, {**files, "1_Dense/model.safetensors": b"of another"})
    small = save_pruned(REPO, tmp_path / "small", keep_layers=KEPT, subfolder="inner")
    assert (small / "1_Dense/model.safetensors").read_bytes() == (source / "1_Dense/model.safetensors").read_bytes()


@pytest.mark.parametrize("target", ["store", "nowhere"])
@pytest.mark.parametrize("door", [from_folder, in_memory, to_hub])
def test_a_tokenizer_of_which_a_part_lies_elsewhere_is_refused(door, target, source, hub, tmp_path):
    for path in source.glob("tokenizer*.json"):
        path.rename(tmp_path / path.name)
    (source / "vocab.txt").rename(tmp_path / "store")
    (source / "vocab.txt").symlink_to(tmp_path / target)  # alone: it must not be said that there is none
    words = r"vocab\.txt' is a link that leads out .*copy the file in its place.*tokenizer=\.\.\..*--no-tokenizer"
    with pytest.raises(CheckpointError, match=words):
        door(source, tmp_path / "small", hub)
    (source / "tokenizer_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=words):
        door(source, tmp_path / "small", hub)
    assert not (tmp_path / "small").exists()
    assert "alice/small" not in hub.repos
    assert not list(save_pruned(source, tmp_path / "small", keep_layers=KEPT, tokenizer=False).glob("vocab.txt"))


def test_prune_names_the_link_in_one_sentence(source, tmp_path, capsys):
    (source / "vocab.txt").unlink(missing_ok=True)
    (source / "vocab.txt").symlink_to(tmp_path / "store")
    (tmp_path / "store").write_text("\n".join(WORDS))
    assert run(["prune", str(source), "--keep-layers", "2", "--output", str(tmp_path / "small")]) == 2
    assert capsys.readouterr().err.count("leads out of the checkpoint") == 1
    run(["prune", str(source), "--keep-layers", "2", "--output", str(tmp_path / "small"), "--no-tokenizer"])
    assert not (tmp_path / "small/vocab.txt").exists()


def test_the_hub_cache_may_have_its_files_on_another_disk(source, hub, tmp_path):
    from_hub(source, tmp_path / "small", hub)
    (blobs,) = tmp_path.glob("home/hub/models--alice--source/blobs")
    blobs.rename(tmp_path / "disk")
    blobs.symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "id_rsa").write_text("secret")
    (snapshot,) = tmp_path.glob("home/hub/models--alice--source/snapshots/*")
    (snapshot / "LICENSE").symlink_to(blobs / "id_rsa")
    again = save_pruned(REPO, tmp_path / "again", keep_layers=KEPT)
    assert len(AutoTokenizer.from_pretrained(again)) == len(WORDS)
    assert not (again / "LICENSE").exists()
