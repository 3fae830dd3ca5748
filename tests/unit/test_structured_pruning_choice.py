# SPDX-License-Identifier: Apache-2.0
"""Which channels are removed together, and which first: arithmetic by hand, no TensorFlow."""

import dataclasses
import itertools

import numpy as np
import pytest
from messages import refused

from tfq import registry
from tfq.compression.structured_pruning.channels import (
    Buffer,
    Channels,
    Counts,
    Graph,
    Group,
    Site,
    Step,
    Term,
    groups_of,
)
from tfq.compression.structured_pruning.costs import CORTEX_A53, ChannelCost
from tfq.compression.structured_pruning.prune import select_channels
from tfq.errors import InputError
from tfq.patterns import parse_targets


def chain(channels, sizes, norms=None, places=1):
    """Return the sites of a chain of pointwise convolutions with frozen input and output."""
    tensors = [channels.add(size) for size in sizes]
    channels.freeze(tensors[0], "input")
    channels.freeze(tensors[-1], "output")
    return [
        Site(
            layer=f"conv{at}",
            inputs=tensors[at],
            outputs=tensors[at + 1],
            terms=(Term(factor=places, per_input=True, per_output=True),),
            makes_channels=True,
            norms=np.asarray(norms[at] if norms else np.ones(sizes[at + 1]), float),
        )
        for at in range(len(sizes) - 1)
    ]


def measure(name, graph):
    return registry.get(ChannelCost, name).measure(graph)


def objective(name, graph):
    return registry.get(ChannelCost, name).objective(graph)


def test_joined_channels_are_one_set_and_frozen_together():
    channels = Channels()
    some, others, third = channels.add(3), channels.add(3), channels.add(3)
    channels.freeze(others[1:2], "an output")
    channels.join(some, others)
    channels.join(others, third)
    assert [len(set(channels.roots(np.array(item)))) for item in zip(some, others, third, strict=True)] == [1, 1, 1]
    assert len(set(channels.roots(some))) == 3
    assert [channels.reason(int(channel)) for channel in third] == [None, "an output", None]


def test_the_first_reason_for_freezing_is_reported():
    channels = Channels()
    one = channels.add(1)
    channels.freeze(one, "first")
    channels.freeze(one, "second")
    assert channels.reason(int(one[0])) == "first"


def test_multiply_adds_count_the_channels_in_and_out_where_they_count():
    assert Term(factor=9, per_input=True, per_output=True).macs(4, 5) == 180
    assert Term(factor=9, per_output=True).macs(4, 5) == 45
    assert Term(factor=9, per_input=True).macs(4, 5) == 36


@pytest.mark.parametrize(
    ("size", "width", "multiple", "steps"),
    [
        (32, 1, 8, [24, 16, 8]),
        (20, 1, 8, [16, 8]),
        (8, 1, 8, []),
        (128, 1, 8, [*range(120, 15, -8)]),  # an eighth of 128 is 16
        (4, 1, 1, [3, 2, 1]),
        (8, 4, 8, [6, 4, 2]),  # sets of four channels: two of them are eight channels
        (6, 3, 8, []),  # eight sets of three are the first multiple of eight
    ],
)
def test_a_group_shrinks_in_multiples_and_keeps_an_eighth(size, width, multiple, steps):
    group = Group(layers=("a",), roots=np.arange(size), scores=np.ones(size), width=width)
    kept, got = size, []
    while (kept := group.next_size(kept, multiple)) is not None:
        got.append(kept)
    assert got == steps


def test_channels_of_the_same_layers_share_their_mean_norm():
    channels = Channels()
    first, *rest = chain(channels, (3, 4, 4), norms=[[1, 2, 3, 2], [4, 4, 8, 0]])
    last = Site(layer="after", inputs=rest[0].outputs, outputs=channels.add(1), makes_channels=True, norms=np.ones(1))
    # `chain` freezes the output of conv1, so this uses a separate model: join first with a new maker.
    twin = channels.add(4)
    channels.join(first.outputs, twin)
    tied = Site(layer="twin", inputs=first.inputs, outputs=twin, makes_channels=True, norms=np.array([10.0, 0, 10, 20]))
    groups, skipped = groups_of(channels, [first, tied, *rest, last], ("*",), 1)
    (group,) = groups
    assert group.layers == ("conv0", "twin")
    # conv0 / its mean 2: .5 1 1.5 1, twin / its mean 10: 1 0 1 2; the smallest first.
    np.testing.assert_allclose(group.scores, [0.5, 0.75, 1.25, 1.5])
    assert list(group.roots) == list(channels.roots(first.outputs[[1, 0, 2, 3]]))
    assert skipped["conv1"] == "output" and "too few" in skipped["after"] and len(skipped) == 2


def test_a_group_is_ranked_by_magnitude_if_one_of_its_channels_has_no_score():
    channels = Channels()
    sites = chain(channels, (3, 4, 4, 2), norms=[[1, 2, 4, 3], [4, 2, 1, 3], [1, 1]])
    by_channel = {site.layer: [channels.root(int(item)) for item in site.outputs] for site in sites}
    scores = dict(zip(by_channel["conv0"] + by_channel["conv1"], [40, 30, 20, 10, 40, 10, 20, 30], strict=True))
    del scores[by_channel["conv0"][0]]
    first, second = groups_of(channels, sites, ("*",), 1, (), scores)[0]
    assert first.by_magnitude and first.roots.tolist() == [by_channel["conv0"][at] for at in (0, 1, 3, 2)]
    np.testing.assert_allclose(first.scores, [0.4, 0.8, 1.2, 1.6])
    assert not second.by_magnitude and second.roots.tolist() == [by_channel["conv1"][at] for at in (1, 2, 3, 0)]
    np.testing.assert_allclose(second.scores, [10, 20, 30, 40])


def test_a_layer_without_matching_pattern_freezes_its_group():
    channels = Channels()
    sites = chain(channels, (3, 8, 8, 8, 2))
    channels.join(sites[0].outputs, sites[2].outputs)
    groups, skipped = groups_of(channels, sites, ("conv0", "conv1"), 4)
    assert [group.layers for group in groups] == [("conv1",)]
    assert "'conv2'" in skipped["conv0"]
    assert "pattern" in skipped["conv2"]
    with refused(InputError, word="'conv1'"):
        groups_of(channels, sites, ("con1",), 4)


def test_counts_follow_a_group_that_shrinks_and_grows():
    channels = Channels()
    sites = chain(channels, (3, 8, 6, 2), places=10)
    groups, _ = groups_of(channels, sites, ("*",), 1)
    graph = Graph(sites=sites, buffers=[Buffer(channels=sites[0].outputs, positions=5)])
    counts, macs = Counts.of(channels, graph, groups), measure("macs", graph)
    assert macs(counts) == 10 * (24 + 48 + 12)
    first = [group.layers for group in groups].index(("conv0",))
    assert counts.num_sites[first] == 2
    counts.change(first, 8, 5)
    assert macs(counts) == 10 * (15 + 30 + 12)
    assert counts.widths.tolist() == [5]
    counts.change(first, 5, 8)
    assert macs(counts) == 10 * (24 + 48 + 12)


def test_the_smallest_filters_go_and_the_budget_is_kept():
    random = np.random.default_rng(0)
    channels = Channels()
    norms = [random.uniform(0.1, 1, size) for size in (16, 32, 16, 4)]
    sites = chain(channels, (3, 16, 32, 16, 4), norms, places=100)
    groups, _ = groups_of(channels, sites, ("*",), 4)
    gone, _, left = select_channels(channels, Graph(sites=sites), groups, target_cost=0.5, channel_multiple=4)
    kept = [~np.isin(channels.roots(site.outputs), list(gone)) for site in sites]
    sizes = [3, *(int(item.sum()) for item in kept)]
    assert left == sum(100 * a * b for a, b in itertools.pairwise(sizes)) <= 0.5 * sum(s.macs() for s in sites)
    assert all(size % 4 == 0 for size in sizes[1:]) and sizes[-1] == 4
    for norm, stays in zip(norms[:3], kept[:3], strict=True):
        assert stays.all() or norm[~stays].max() <= norm[stays].min()


def test_no_step_is_taken_that_the_budget_did_not_need():
    channels = Channels()
    sites = chain(channels, (3, 16, 32, 16, 4), places=100)
    groups, _ = groups_of(channels, sites, ("*",), 4)
    gone, _, _ = select_channels(channels, Graph(sites=sites), groups, target_cost=0.6, channel_multiple=4)
    sizes = [3, *(int((~np.isin(channels.roots(site.outputs), list(gone))).sum()) for site in sites)]
    for at in (1, 2, 3):
        if sizes[at] < len(sites[at - 1].outputs):
            grown = [size + 4 * (place == at) for place, size in enumerate(sizes)]
            assert sum(100 * a * b for a, b in itertools.pairwise(grown)) > 0.6 * sum(s.macs() for s in sites)


def test_channels_inside_a_block_are_removed_before_the_residual_stream():
    channels = Channels()
    stem, inner, back, head = sites = chain(channels, (3, 16, 16, 16, 16), places=100)
    channels.join(stem.outputs, back.outputs)
    readers = [dataclasses.replace(head, layer=f"reader{number}", inputs=stem.outputs) for number in range(3)]
    groups, _ = groups_of(channels, [*sites, *readers], ("conv0", "conv1", "conv2"), 4)
    gone, _, _ = select_channels(
        channels, Graph(sites=[*sites, *readers]), groups, target_cost=0.93, channel_multiple=4
    )
    assert gone and gone <= set(channels.roots(inner.outputs))


def sizes_with(targets, target_cost, sizes=(3, 16, 32, 16, 4)):
    channels = Channels()
    sites = chain(channels, sizes)
    groups, _ = groups_of(channels, sites, ("*",), 4, parse_targets(targets, "structured_pruning", "fraction", 1))
    gone, _, left = select_channels(channels, Graph(sites=sites), groups, target_cost=target_cost, channel_multiple=4)
    results = [sizes[0], *(int((~np.isin(channels.roots(site.outputs), list(gone))).sum()) for site in sites)]
    assert left == sum(a * b for a, b in itertools.pairwise(results))
    return results[1:-1]


def test_a_layer_with_a_target_keeps_that_fraction():
    assert sizes_with([], 0.5)[1] == 12
    first, wide, last = sizes_with(["conv1=1"], 0.5)
    assert wide == 32 and first < 16 and last < 16
    assert sizes_with(["conv*=0.25", "conv1=0.5"], 0.5) == [4, 16, 4]  # less than what may stay
    assert sizes_with(["conv1=0"], 0.9) == [16, 4, 16]  # one eighth is the minimum
    with refused(InputError, word="'con1=0.5'"):
        sizes_with(["con1=0.5"], 0.5)
    with refused(InputError, word="'conv3=0.5'"):
        sizes_with(["conv3=0.5"], 0.5)


def test_a_target_holds_for_all_layers_that_are_tied():
    channels = Channels()
    sites = chain(channels, (3, 16, 16, 16, 2))
    channels.join(sites[0].outputs, sites[2].outputs)
    groups, _ = groups_of(channels, sites, ("*",), 4, parse_targets(["conv2=0.5"], "structured_pruning", "fraction", 1))
    gone, _, _ = select_channels(channels, Graph(sites=sites), groups, target_cost=0.99, channel_multiple=4)
    assert len(gone) == 8 and gone <= set(channels.roots(sites[0].outputs))


def test_dead_filters_go_before_all_others():
    channels = Channels()
    norms = [np.ones(16), np.where(np.arange(16) < 8, 0.0, 1.0), np.ones(4)]
    sites = chain(channels, (16, 16, 16, 4), norms)
    groups, _ = groups_of(channels, sites, ("*",), 4)
    gone, _, _ = select_channels(channels, Graph(sites=sites), groups, target_cost=0.75, channel_multiple=4)
    assert gone == set(channels.roots(sites[1].outputs[:8]))


def test_what_cannot_be_reached_takes_all_that_may_go():
    channels = Channels()
    sites = chain(channels, (3, 16, 4))
    groups, _ = groups_of(channels, sites, ("*",), 8)
    gone, _, left = select_channels(channels, Graph(sites=sites), groups, target_cost=0.1, channel_multiple=8)
    assert len(gone) == 8 and left == 3 * 8 + 8 * 4


# Counts of int8 models of one layer on an emulated Cortex-A53 (benchmarks/instruction_table.py):
# (positions, taps, inputs, outputs, instructions).
COUNTED = [
    (1024, 9, 3, 16, 252416),
    (1024, 9, 16, 16, 936704),
    (256, 9, 16, 32, 467840),
    (64, 9, 64, 64, 884222),
    (256, 1, 64, 64, 419688),
    (36, 9, 24, 4, 52825),
    (196, 1, 40, 3, 58348),
]


@pytest.mark.parametrize(("positions", "taps", "inputs", "outputs", "counted"), COUNTED)
def test_estimated_instructions_are_close_to_counted_ones(positions, taps, inputs, outputs, counted):
    term = Term(factor=positions * taps, per_input=True, per_output=True, positions=positions)
    channels = Channels()
    site = Site(layer="conv", inputs=channels.add(inputs), outputs=channels.add(outputs), terms=(term,))
    graph = Graph(sites=[site])
    estimate = measure("instructions_a53", graph)(Counts.of(channels, graph, []))
    assert estimate == pytest.approx(counted, rel=0.06)


def test_an_incomplete_tile_costs_as_much_as_a_complete_one():
    term = Term(factor=9 * 64, per_input=True, per_output=True, positions=64)
    costs = [CORTEX_A53.of_term(term, 8, outputs) for outputs in (1, 15, 16, 17, 32)]
    assert costs[0] == costs[1] == costs[2] < costs[3] == costs[4]


def test_the_search_steps_over_sizes_that_save_no_instructions():
    channels = Channels()
    sites = chain(channels, (3, 32, 4), places=64)
    sites = [dataclasses.replace(site, terms=(dataclasses.replace(site.terms[0], positions=64),)) for site in sites]
    groups, _ = groups_of(channels, sites, ("*",), 4)
    gone, before, after = select_channels(
        channels, Graph(sites=sites), groups, target_cost=0.8, channel_multiple=4, cost="instructions_a53"
    )
    assert len(gone) == 16 and after <= 0.8 * before  # 16 channels are one tile instead of two


def graph_of_buffers(channels):
    """Return an input of 100 values, 8 positions of two buffers that are alive together, and a sum of both."""
    wide, narrow = channels.add(16), channels.add(16)
    buffers = [
        Buffer(channels=channels.add(100), positions=1),
        Buffer(channels=wide, positions=8),
        Buffer(channels=narrow, positions=8),
        Buffer(channels=channels.add(10), positions=1),
    ]
    steps = [
        Step(layer="a", reads=(0,), writes=1, has_weights=True),
        Step(layer="b", reads=(1,), writes=2, has_weights=True),
        Step(layer="c", reads=(1, 2), writes=3, has_weights=False),
    ]
    return wide, narrow, Graph(sites=[], buffers=buffers, steps=steps, inputs=(0,), outputs=(3,))


def test_memory_is_that_of_the_buffers_which_are_alive_together():
    channels = Channels()
    wide, narrow, graph = graph_of_buffers(channels)
    groups = [Group(layers=(name,), roots=item, scores=np.ones(16)) for name, item in (("a", wide), ("b", narrow))]
    counts, arena = Counts.of(channels, graph, groups), measure("arena", graph)
    assert arena(counts) == 8 * 16 + 8 * 16 + 10  # the last step; the first needs 100 + 128
    counts.change(1, 16, 4)
    assert arena(counts) == 100 + 8 * 16
    assert 228 < objective("arena", graph)(counts) < 235


def test_memory_is_limited_where_two_steps_need_the_same():
    channels = Channels()
    tensors = [channels.add(16) for _ in range(4)]
    buffers = [Buffer(channels=item, positions=8) for item in tensors]
    steps = [Step(layer=str(at), reads=(at,), writes=at + 1, has_weights=True) for at in range(3)]
    graph = Graph(sites=[], buffers=buffers, steps=steps, inputs=(0,), outputs=(3,))
    groups = [Group(layers=(str(at),), roots=tensors[at], scores=np.ones(16)) for at in (1, 2)]
    gone, before, after = select_channels(channels, graph, groups, target_cost=0.8, channel_multiple=4, cost="arena")
    assert (before, after) == (256, 192) and len(gone) == 16
