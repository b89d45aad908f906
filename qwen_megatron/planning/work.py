"""Operations of a rank in an optimizer step, product by product.

T tokens of a micro-batch on a context-parallel rank, t tensor-parallel size, h hidden, F width of a feed-forward
branch, P query heads x head size, G key/value heads x head size, v vocabulary rows of the rank that are no padding.

Products of a layer, T x k x n each: queries, keys and values k = h, n = (P + 2G) / t; attention's output k = P / t, n =
h; gate and up projection k = h, n = 2F / t; down projection k = F / t, n = h. The backward pass has two of each, for
the input's and for the weight's gradient. The output layer T x h x v has the same three, all made with the loss.

Attention: two products of queries with keys forward, five backward (the kernel makes the scores again), half of the
square where it is causal. A context-parallel rank has two slices of the sequence: the first slice of all attends to
itself, the others to all keys before their end, with a mask, so that nothing is saved there.
"""

from __future__ import annotations

from dataclasses import dataclass

from qwen_megatron.config.arithmetic.memory import tokens_of_microbatch
from qwen_megatron.config.resolve import ResolvedConfig
from qwen_megatron.planning.place import Place, is_last, place_of

FORWARD_PRODUCTS, BACKWARD_PRODUCTS = 2, 5


@dataclass(frozen=True, kw_only=True)
class Product:
    """A matrix product: 2 m k n operations."""

    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        """Operations."""
        return 2 * self.m * self.k * self.n


def layer_products(config: ResolvedConfig) -> tuple[Product, ...]:
    """Of one layer's forward pass over a micro-batch, on one rank."""
    model, size, tokens = config.model, config.parallel.tensor_model_parallel_size, tokens_of_microbatch(config)
    query, key = model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels
    h, branch = model.hidden_size, model.ffn_hidden_size
    return (
        Product(m=tokens, k=h, n=(query + 2 * key) // size),
        Product(m=tokens, k=query // size, n=h),
        Product(m=tokens, k=h, n=2 * branch // size),
        Product(m=tokens, k=branch // size, n=h),
    )


def head_product(config: ResolvedConfig, tensor: int) -> Product:
    """Logits of a micro-batch on a tensor-parallel rank; padding is left out."""
    rows = config.padded_vocab_size // config.parallel.tensor_model_parallel_size
    valid = min(max(config.model.vocab_size - tensor * rows, 0), rows)
    return Product(m=tokens_of_microbatch(config), k=config.model.hidden_size, n=valid)


def attention_product_flops(config: ResolvedConfig, context: int) -> int:
    """Operations of one of a layer's products between queries and keys, causal ones counted half."""
    model, size = config.model, config.parallel.context_parallel_size
    rows = config.training.micro_batch_size * config.shape.rows_per_sample
    heads = model.num_attention_heads // config.parallel.tensor_model_parallel_size
    pair = 2 * rows * heads * model.kv_channels
    length = config.training.seq_length
    if size == 1:
        return pair * length * length // 2
    part = length // (2 * size)
    whole = 0
    for number in (context, 2 * size - 1 - context):
        square = pair * part * part * (number + 1)
        whole += square // 2 if number == 0 else square
    return whole


@dataclass(frozen=True, kw_only=True)
class StageWork:
    """Operations of a micro-batch on a rank.

    Attributes:
        layers: Of the stage.
        products: Forward, of all layers.
        attention: Forward, of all layers.
        head: Of the output layer's forward product; 0 where there is none.
        attention_again, products_again: What recomputation does once more.
    """

    layers: int
    products: int
    attention: int
    head: int
    attention_again: int
    products_again: int

    @property
    def flops(self) -> int:
        """All of them."""
        attention = self.attention // FORWARD_PRODUCTS * (FORWARD_PRODUCTS + BACKWARD_PRODUCTS)
        return 3 * (self.products + self.head) + attention + self.attention_again + self.products_again


def stage_work(config: ResolvedConfig, place: Place) -> StageWork:
    """Of one micro-batch on the rank of this place."""
    layers = config.layers_per_stage[place.stage]
    products = layers * sum(product.flops for product in layer_products(config))
    attention = layers * FORWARD_PRODUCTS * attention_product_flops(config, place.context)
    recompute = config.parallel.recompute_granularity
    has_head = is_last(config, place.stage) and not config.shape.has_scalar_head
    return StageWork(
        layers=layers,
        products=products,
        attention=attention,
        head=head_product(config, place.tensor).flops if has_head else 0,
        attention_again=attention if recompute != "none" else 0,
        products_again=products if recompute == "full" else 0,
    )


def step_flops(config: ResolvedConfig, rank: int, num_microbatches: int | None = None) -> int:
    """Operations of a rank in an optimizer step; `num_microbatches` None for the configured ones."""
    count = config.num_microbatches if num_microbatches is None else num_microbatches
    return count * stage_work(config, place_of(config, rank)).flops
