#include "experts.h"

#include <algorithm>
#include <vector>

#include "product.h"

namespace pocketgem {
namespace {

// The pairs (row, choice) of one expert lie one after another, at places [begin, end).
struct Group {
    long expert, begin, end;
};

struct Gathered {
    std::vector<Group> groups;
    std::vector<long> pairs;  // [place] row * chosen + choice
};

// The pairs whose expert is in memory.
Gathered gather(const Choices& choices, long rows, const Expert* experts, long count) {
    const long all = rows * choices.chosen;
    const auto present = [&](long i) { return experts[choices.experts[i]].gate != nullptr; };
    Gathered out;
    std::vector<long> next(static_cast<std::size_t>(count) + 1, 0);
    for (long i = 0; i < all; ++i)
        if (present(i)) ++next[static_cast<std::size_t>(choices.experts[i]) + 1];
    for (long e = 0; e < count; ++e) {
        const long begin = next[static_cast<std::size_t>(e)];
        const long end = next[static_cast<std::size_t>(e) + 1] += begin;
        if (end > begin) out.groups.push_back({e, begin, end});
    }
    out.pairs.resize(static_cast<std::size_t>(next[static_cast<std::size_t>(count)]));
    for (long i = 0; i < all; ++i)
        if (present(i)) out.pairs[static_cast<std::size_t>(next[static_cast<std::size_t>(choices.experts[i])]++)] = i;
    return out;
}

// One task: panels of one expert.
struct Turn {
    std::size_t group;
    long panel, end;
};

// The products of all groups with one matrix each, cut into tasks.
struct Stage {
    std::vector<Job> jobs;  // [groups]
    std::vector<Ready> rows;
    std::vector<Turn> turns;
};

template <typename WeightOf>
Stage stage_of(Kernels& k, const Gathered& gathered, const Ready& all, Buffer& memory, const WeightOf& weight_of) {
    Stage stage;
    Sizes sizes{false, false};
    for (const Group& group : gathered.groups) {
        const Sizes its = sizes_of(k, group.end - group.begin);
        sizes = {sizes.few || its.few, sizes.many || its.many};
    }
    const Job whole = job_of(k, *weight_of(gathered.groups[0].expert), all, memory, sizes);  // of all rows at once
    for (std::size_t g = 0; g < gathered.groups.size(); ++g) {
        const Group& group = gathered.groups[g];
        Job job = part_of(whole, all, group.begin);
        job.weight = weight_of(group.expert);
        stage.rows.push_back(part_of(all, group.begin, group.end));
        for (long panel = 0; panel < job.weight->layout.panels; panel += job.panels_a_task)
            stage.turns.push_back({g, panel, last_panel(job, panel)});
        stage.jobs.push_back(job);
    }
    return stage;
}

// Rows of x in the order of their places.
Ready spread(Kernels& k, const float* x, const Gathered& gathered, long chosen, long cols, bool packed,
             Buffer& memory) {
    const long all = static_cast<long>(gathered.pairs.size());
    float* rows = memory.of<float>(static_cast<std::size_t>(all * cols));
    k.pool.run((all + 15) / 16, [&](long part) {
        for (long i = part * 16; i < std::min(all, part * 16 + 16); ++i)
            std::copy_n(x + gathered.pairs[static_cast<std::size_t>(i)] / chosen * cols, cols, rows + i * cols);
    });
    return prepare(k, {rows, all, cols, nullptr, 0}, packed);
}

}  // namespace

void run_present(Kernels& k, const float* x, long rows, const Expert* experts, long count, const Choices& choices,
                 float* products) {
    const Gathered gathered = gather(choices, rows, experts, count);
    if (gathered.groups.empty()) return;
    const Expert& any = experts[gathered.groups[0].expert];
    const long hidden = any.gate->layout.cols, width = any.gate->layout.rows;
    const long all = static_cast<long>(gathered.pairs.size());
    Lender::Loan inputs(k.scratch), middle(k.scratch), results(k.scratch);

    const Ready in = spread(k, x, gathered, choices.chosen, hidden, any.gate->packed || any.up->packed, *inputs);
    float* inner = middle->of<float>(static_cast<std::size_t>(all * width));
    const Stage gates = stage_of(k, gathered, in, k.corrections[0], [&](long e) { return experts[e].gate; });
    const Stage ups = stage_of(k, gathered, in, k.corrections[1], [&](long e) { return experts[e].up; });
    k.pool.run(static_cast<long>(gates.turns.size()), [&](long i) {
        const Turn& turn = gates.turns[static_cast<std::size_t>(i)];
        float* to = inner + gathered.groups[turn.group].begin * width + turn.panel * kPanel;
        compute_gated(k, gates.jobs[turn.group], ups.jobs[turn.group], gates.rows[turn.group], turn.panel, turn.end, to,
                      width);
    });

    const Ready halfway = prepare(k, {inner, all, width, nullptr, 0}, any.down->packed);
    float* sorted = results->of<float>(static_cast<std::size_t>(all * hidden));
    const Stage downs = stage_of(k, gathered, halfway, k.corrections[2], [&](long e) { return experts[e].down; });
    k.pool.run(static_cast<long>(downs.turns.size()), [&](long i) {
        const Turn& turn = downs.turns[static_cast<std::size_t>(i)];
        float* to = sorted + gathered.groups[turn.group].begin * hidden + turn.panel * kPanel;
        compute(k, downs.jobs[turn.group], downs.rows[turn.group], turn.panel, turn.end, to, hidden);
    });
    k.pool.run((all + 15) / 16, [&](long part) {
        for (long i = part * 16; i < std::min(all, part * 16 + 16); ++i)
            std::copy_n(sorted + i * hidden, hidden, products + gathered.pairs[static_cast<std::size_t>(i)] * hidden);
    });
}

void mix_products(Kernels& k, const float* products, long rows, long hidden, const Choices& choices, float* out) {
    k.pool.run(rows, [&](long row) {  // a row's experts add up in the order the router chose them
        std::fill_n(out + row * hidden, hidden, 0.0f);
        for (long c = row * choices.chosen; c < (row + 1) * choices.chosen; ++c)
            for (long i = 0; i < hidden; ++i) out[row * hidden + i] += choices.shares[c] * products[c * hidden + i];
    });
}

void run_experts(Kernels& k, const float* x, long rows, const Expert* experts, long count, const Choices& choices,
                 float* out) {
    if (rows == 0) return;
    const long hidden = experts[0].gate->layout.cols;
    Lender::Loan loan(k.scratch);
    float* products = loan->of<float>(static_cast<std::size_t>(rows * choices.chosen * hidden));
    run_present(k, x, rows, experts, count, choices, products);
    mix_products(k, products, rows, hidden, choices, out);
}

}  // namespace pocketgem
