// The products of backward, d . U and d . W: from the gradients of both sums to those of h and x, through what dropout scaled.
// Called by layer_backward.cpp, by each of its threads.
#pragma once
#include <cstring>

#include "input_scales.h"
#include "plan.h"

namespace fastlstm {

template <class T>
class BackwardProducts {
 public:
  static constexpr int64_t kDxRows = 48;

  // wants_dx: whether into_dx will be called.
  BackwardProducts(const Panels<T>& panels, const Draws& draws, const Timeline& timeline, int64_t B, const Plan& plan,
                   bool wants_dx)
      : panels_(panels),
        layout_(panels.layout),
        shape_(panels.shape),
        plan_(plan),
        transposed_(plan.single_step ? nullptr : &panels.transposed(plan.threads())),
        scales_(panels, draws, timeline, B),
        unscaled_rows_(scales_ ? B : 0),
        dx_(wants_dx ? size_product(plan.threads(), kDxRows, layout_.input_padded) : 0),
        unscaled_(size_product(plan.threads(), unscaled_rows_, layout_.output_padded)) {}

  const InputScales<T>& scales() const { return scales_; }
  const typename Panels<T>::Transposed& transposed() const { return *transposed_; }

  // dh (+)= d_h . U for sorted rows and some panels of dh [rows, output_padded], both at the first of the rows.
  void into_dh(int thread, Range rows, const T* d_h, Range panels, bool descending, bool add, T* dh) const {
    Product<T> p = product_of(d_h, rows.size());
    p.descending = descending;
    p.panel_begin = panels.begin;
    p.panel_end = panels.end;
    if (panels.end * layout_.panel > shape_.output()) p.tail_vectors = layout_.tail_vectors(shape_.output());
    p.c = dh;
    p.c_stride = layout_.output_padded;
    if (!scales_) {
      if (add) p.start = dh, p.start_stride = p.c_stride;
      return times_weights(p, &Panels<T>::Transposed::dh, shape_.I, shape_.output());
    }
    p.c = unscaled_.data() + thread * unscaled_rows_ * layout_.output_padded;
    const int64_t begin = panels.begin * layout_.panel, end = std::min(shape_.output(), panels.end * layout_.panel);
    times_weights_scaled(p, &Panels<T>::Transposed::dh, [&](int kind) {
      for (int64_t row = 0; row < rows.size(); ++row) {
        const T *from = p.c + row * p.c_stride, *scales = scales_.of_h(kind, rows.begin + row);
        T* to = dh + row * p.c_stride;
        for (int64_t i = begin; i < end; ++i) to[i] = (add || kind > 0 ? to[i] : T(0)) + from[i] * scales[i];
      }
    });
  }

  // dx (+)= d_x . W, at most kDxRows rows. each(store) calls store(i, sorted row, dx) for each of them.
  template <class Each>
  void into_dx(int thread, int64_t rows, const T* d_x, bool add, Each each) const {
    const int64_t I = shape_.I, stride = layout_.input_padded;
    if (shape_.given) return each([&](int64_t i, int64_t, T* dx) { store_given(d_x + i * layout_.d_pre_stride, dx); });
    Product<T> p = product_of(d_x, rows);
    p.panel_end = stride / layout_.panel;
    p.tail_vectors = layout_.tail_vectors(I);
    p.c = dx_.data() + thread * kDxRows * stride;
    p.c_stride = stride;
    if (scales_)
      return times_weights_scaled(p, &Panels<T>::Transposed::dx, [&](int kind) {
        each([&](int64_t i, int64_t row, T* dx) {
          const T *from = p.c + i * stride, *scales = scales_.of_x(kind, row);
          for (int64_t k = 0; k < I; ++k) dx[k] = (add || kind > 0 ? dx[k] : T(0)) + from[k] * scales[k];
        });
      });
    times_weights(p, &Panels<T>::Transposed::dx, 0, I);
    each([&](int64_t i, int64_t, T* dx) {
      const T* from = p.c + i * stride;
      if (add)
        for (int64_t k = 0; k < I; ++k) dx[k] += from[k];
      else
        std::memcpy(dx, from, std::size_t(I) * sizeof(T));
    });
  }

 private:
  // Of rows of d_x or d_h.
  Product<T> product_of(const T* d, int64_t rows) const {
    Product<T> p{};
    p.rows = rows;
    p.K = layout_.columns;
    p.K_first = p.K_chain = kChain;
    p.a = d;
    p.a_stride = layout_.d_pre_stride;
    p.panel_stride = layout_.columns * layout_.panel;
    p.prefetch = plan_.prefetch;
    return p;
  }

  // With `count` rows of the gate panels from `first` on, transposed before or, for a single step, on the way.
  void times_weights(Product<T> p, Buffer<T> Panels<T>::Transposed::* panels, int64_t first, int64_t count) const {
    if (!transposed_) return panels_.product_transposed(p, first, count);
    p.panels = (transposed_->*panels).data();
    panels_.kernels.product(p);
  }

  // The same where what the weights saw was scaled: for each scaling the product of its gates into p.c, then function(kind).
  template <class Function>
  void times_weights_scaled(Product<T> p, Buffer<T> Panels<T>::Transposed::* panels, Function function) const {
    p.K = layout_.columns / scales_.kinds();
    const T *d = p.a, *rows = (transposed_->*panels).data();
    for (int kind = 0; kind < scales_.kinds(); ++kind) {
      p.a = d + kind * layout_.d_gate;
      p.panels = rows + kind * p.K * layout_.panel;
      panels_.kernels.product(p);
      function(kind);
    }
  }

  // A row of d_x as [4H].
  void store_given(const T* d_x, T* dx) const {
    const int64_t H = shape_.H, L = layout_.lanes;
    for (int64_t gate = 0; gate < 4; ++gate)
      for (int64_t unit = 0; unit < H; unit += L)
        std::copy_n(d_x + unit / L * layout_.d_block + gate * layout_.d_gate, std::min(L, H - unit),
                    dx + gate * H + unit);
  }

  const Panels<T>& panels_;
  const Layout& layout_;
  const Shape shape_;  // T and B are zero
  const Plan& plan_;
  const typename Panels<T>::Transposed* transposed_;  // null: of a single step
  InputScales<T> scales_;
  const int64_t unscaled_rows_;
  Buffer<T> dx_;        // [threads, kDxRows, input_padded]
  Buffer<T> unscaled_;  // [threads, B, output_padded] where inputs are dropped
};

}  // namespace fastlstm
