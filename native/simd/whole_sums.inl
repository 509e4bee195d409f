// For sets that add a register's products in 32 bits at once: sums of 16 bits, which others begin with, win nothing.
// Included by those sets' headers within their namespace.
template <int bits> constexpr int kRun = 1;
using Short = I;
inline Short no_sum() { return zeros_i(); }
inline Short multiply(B w, B x) { return dot_small(zeros_i(), w, x); }
inline I widen_add(I sum, Short x) { return sum + x; }
