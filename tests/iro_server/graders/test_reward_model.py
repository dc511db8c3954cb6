import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from iro_server.cli.demo.data import imdb_splits
from iro_server.graders.base import GraderError, Sample
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.local_models import bundled_embedding_model, chat_text, check_reward_model
from iro_server.graders.parsing import parse_grader

SPEC = {"type": "score_model", "model": "rm", "input": [{"role": "user", "content": "{{ sample.output_text }}"}]}
CONTEXT = 64  # tokens
TEXTS = ["a", "b b a", "a b " * (CONTEXT // 2), "b", "a a b b " * 10, "b a"] * 12
CONVERSATION = [
    {"role": "user", "content": "{{ item.q }}"},
    {"role": "assistant", "content": "{{ sample.output_text }}"},
]


def rewards(spec, folder, texts):
    with parse_grader(spec, GraderEnvironment(reward_models={"rm": folder})) as grader:
        return np.array([grade.reward for grade in grader.grade_many([(Sample(text), {}) for text in texts])])


@pytest.fixture(scope="module", params=[1, 2])
def small(request, tmp_path_factory):
    """A random reward model over the words a and b, with that many outputs: its directory, and itself."""
    folder = tmp_path_factory.mktemp("rm")
    words = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1, "b": 2, "[UNK]": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=CONTEXT,
        num_labels=request.param,
        initializer_range=1.0,
    )
    model = BertForSequenceClassification(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, model, tokenizer


def test_it_scores_each_text_as_the_model_alone_does(small):
    folder, model, tokenizer = small
    with torch.inference_mode():
        logits = torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in TEXTS])
    alone = logits[:, 0] if logits.shape[1] == 1 else logits.softmax(-1)[:, 1]
    np.testing.assert_allclose(rewards(SPEC, folder, TEXTS), alone.numpy(), atol=1e-4)


def test_a_conversation_over_the_context_is_not_cut_but_fails(small):
    folder, *_ = small
    spec = {**SPEC, "input": CONVERSATION}
    rows = [("a", CONTEXT), ("b b", CONTEXT), ("b", CONTEXT - 1), ("a b", 10)]
    with parse_grader(spec, GraderEnvironment(reward_models={"rm": folder})) as grader:
        grades = grader.grade_many([(Sample(text), {"q": "a " * words}) for text, words in rows])
        assert grader.grade(Sample("a"), {"q": "a " * CONTEXT}).error == grades[0].error
    assert [grade.error for grade in grades] == [
        "the conversation has 65 tokens, the reward model rm reads 64",
        "the conversation has 66 tokens, the reward model rm reads 64",
        None,
        None,
    ]
    texts = ["a " * (CONTEXT - 1) + "\nb", "a " * 10 + "\na b"]
    assert [grade.reward for grade in grades[2:]] == pytest.approx(rewards(SPEC, folder, texts), abs=1e-5)


def test_a_range_clamps_only_where_it_is_given(small):
    folder, *_ = small
    free = rewards(SPEC, folder, TEXTS)
    low, high = np.quantile(free, [0.3, 0.7])
    clamped = rewards({**SPEC, "range": [float(low), float(high)]}, folder, TEXTS)
    np.testing.assert_allclose(clamped, free.clip(low, high), atol=1e-5)
    assert free.min() < low and free.max() > high


def test_a_conversation_goes_through_the_chat_template_where_there_is_one(small, tmp_path):
    folder, model, tokenizer = small
    spec = {**SPEC, "input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    joined = rewards(SPEC, folder, ["a\nb"])
    np.testing.assert_allclose(rewards(spec, folder, [""]), joined, atol=1e-5)
    model.save_pretrained(tmp_path)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] + ' a b ' }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    tokenizer.chat_template = None
    np.testing.assert_allclose(rewards(spec, tmp_path, [""]), rewards(SPEC, folder, ["a a b b a b"]), atol=1e-5)


def test_a_developers_message_is_the_systems(small, tmp_path):
    _, model, tokenizer = small
    model.save_pretrained(tmp_path)
    tokenizer.chat_template = "{% for m in messages %}{{ ('a' if m['role'] == 'system' else 'b') }} {% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    tokenizer.chat_template = None
    texts = [chat_text(tmp_path, [{"role": role, "content": "c"}])[0] for role in ("system", "developer", "user")]
    assert texts == ["a ", "a ", "b "]


def test_a_directory_without_a_model_is_refused_and_so_are_labels_and_rankings_of_a_reward_model(small, tmp_path):
    with pytest.raises(GraderError, match="holds no model") as refused:
        parse_grader(SPEC, GraderEnvironment(reward_models={"rm": tmp_path}))
    assert refused.value.param == "grader.model"
    labels = {**SPEC, "type": "label_model", "labels": ["a"], "passing_labels": ["a"]}
    with pytest.raises(GraderError, match="use score_model"):
        parse_grader(labels, GraderEnvironment(reward_models={"rm": small[0]}))
    ranked = {
        **SPEC,
        "input": [{"role": "user", "content": "a"}],
        "ranking": {"completion": "{{ sample.output_text }}"},
    }
    with pytest.raises(GraderError, match="one at a time") as refused:
        parse_grader(ranked, GraderEnvironment(reward_models={"rm": small[0]}))
    assert refused.value.param == "grader.ranking"


def test_a_model_without_a_score_is_refused_before_it_grades_at_random(tmp_path):
    folder, _ = save_decoder(tmp_path, LlamaForCausalLM)
    with pytest.raises(GraderError, match="holds none that can be loaded") as refused:
        parse_grader(SPEC, GraderEnvironment(reward_models={"rm": folder}))
    assert refused.value.param == "grader.model"
    with pytest.raises(ValueError, match=r"lacks weights of a LlamaForSequenceClassification: score\.weight$"):
        check_reward_model(folder)


@pytest.mark.parametrize("padding", [None, 2, 3])
def test_a_decoder_is_read_at_the_last_token_of_each_text(padding, tmp_path):
    """As the model alone, whether its configuration pads with no token, the one that ends a text, or another."""
    folder, model = save_decoder(tmp_path, LlamaForSequenceClassification, pad_token_id=padding, num_labels=1)
    texts = ["a b", "a", "b b a a b", "a a"]
    with torch.inference_mode():
        alone = [model(torch.tensor([[*map("_ab".index, text.split()), 2]])).logits.item() for text in texts]
    spec = {**SPEC, "input": [{"role": "user", "content": "{{ sample.output_text }} b"}]}
    np.testing.assert_allclose(rewards(spec, folder, texts), alone, atol=1e-5)


def save_decoder(folder, kind, **config):
    """A random Llama over the words a and b, whose tokenizer has no token for padding."""
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "b": 2, "c": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", eos_token="b").save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = kind(LlamaConfig(vocab_size=4, initializer_range=1.0, **sizes, **config)).eval()
    model.save_pretrained(folder)
    return folder, model


def test_a_robertas_longest_text_is_graded_and_a_longer_one_fails_alone(tmp_path):
    """Two of its position embeddings, for padding and what is before it, belong to no text."""
    words = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "a": 2, "<unk>": 3}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>").save_pretrained(tmp_path)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=4, max_position_embeddings=CONTEXT + 2, pad_token_id=1, num_labels=1, **sizes)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    with parse_grader(SPEC, GraderEnvironment(reward_models={"rm": tmp_path})) as grader:
        grades = grader.grade_many([(Sample("a " * words), {}) for words in (CONTEXT, CONTEXT + 1, 1)])
    assert [grade.error for grade in grades] == [
        None,
        f"the conversation has {CONTEXT + 1} tokens, the reward model rm reads {CONTEXT}",
        None,
    ]


@pytest.mark.slow(30)
def test_a_reward_model_of_sentiment_prefers_good_reviews(tmp_path):
    """MiniLM with a head fitted on the ends of reviews, as a user would bring it: it ranks reviews it never saw."""
    source, seen = bundled_embedding_model(), 1200
    model = BertForSequenceClassification.from_pretrained(source, num_labels=1).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    reviews = imdb_splits().judge.part(0, seen + 300)
    texts = [" ".join(text.split()[-30:]) for text in reviews.texts]
    with torch.inference_mode():
        batches = [tokenizer(texts[i : i + 40], padding=True, return_tensors="pt") for i in range(0, seen, 40)]
        pooled = torch.cat([model.bert(**batch).pooler_output for batch in batches])
    head = LogisticRegression(C=1.0, max_iter=1000).fit(pooled.numpy(), reviews.labels[:seen])
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(head.coef_))
        model.classifier.bias.copy_(torch.from_numpy(head.intercept_))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)

    logits = rewards(SPEC, tmp_path, texts[seen:])
    assert roc_auc_score(reviews.labels[seen:], logits) > 0.65
