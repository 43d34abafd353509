// One layer and direction of oneDNN's LSTM behind a few C functions: what a C++ user of oneDNN writes. rivals/onednn.py
// calls it through ctypes. It is linked with no library, and so runs with the oneDNN that was loaded before it.
// Weights have torch's layout, which oneDNN calls ldgoi: [4H,I], [4H,H], gates i f g o. There is one bias, [4H].

#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

using dnnl::lstm_backward;
using dnnl::lstm_forward;
using dnnl::memory;
using dnnl::prop_kind;
using tag = memory::format_tag;
using Arguments = std::unordered_map<int, memory>;
using Layouts = std::vector<std::pair<const char*, memory::desc>>;

memory::desc f32(const memory::dims& shape, tag layout) { return {shape, memory::data_type::f32, layout}; }

class Lstm {
 public:
  Lstm(long T, long B, long I, long H, bool training)
      : x(f32({T, B, I}, tag::tnc)),
        y(f32({T, B, H}, tag::tnc)),
        state(f32({1, 1, B, H}, tag::ldnc)),
        w_x(f32({1, 1, I, 4, H}, tag::ldgoi)),
        w_h(f32({1, 1, H, 4, H}, tag::ldgoi)),
        any_x(f32({1, 1, I, 4, H}, tag::any)),
        any_h(f32({1, 1, H, 4, H}, tag::any)),
        b(f32({1, 1, 4, H}, tag::ldgo)) {
    const auto kind = training ? prop_kind::forward_training : prop_kind::forward_inference;
    const lstm_forward::primitive_desc desc(engine, kind, direction, x, state, state, any_x, any_h, b, y, state, state);
    make({{"x", x},
          {"h0", state},
          {"c0", state},
          {"w_x", w_x},
          {"w_h", w_h},
          {"b", b},
          {"y", y},
          {"h_n", state},
          {"c_n", state},
          {"packed_x", desc.weights_layer_desc()},
          {"packed_h", desc.weights_iter_desc()}});
    forward = lstm_forward(desc);
    pack_x = dnnl::reorder(memories["w_x"], memories["packed_x"]);
    pack_h = dnnl::reorder(memories["w_h"], memories["packed_h"]);
    forward_arguments = arguments("packed_x", "packed_h");
    if (training) prepare_backward(desc);
  }

  void pack() {
    pack_x.execute(stream, memories["w_x"], memories["packed_x"]);
    pack_h.execute(stream, memories["w_h"], memories["packed_h"]);
    stream.wait();
  }

  void infer() {
    forward.execute(stream, forward_arguments);
    stream.wait();
  }

  // What one call wrote as its last state, the next one reads as its first.
  void step() {
    infer();
    std::swap(forward_arguments[DNNL_ARG_SRC_ITER], forward_arguments[DNNL_ARG_DST_ITER]);
    std::swap(forward_arguments[DNNL_ARG_SRC_ITER_C], forward_arguments[DNNL_ARG_DST_ITER_C]);
  }

  // Weights change with every training step, so laying them out anew counts. oneDNN adds gradients to what it finds.
  void train() {
    pack_x.execute(stream, memories["w_x"], memories["packed_x"]);
    pack_h.execute(stream, memories["w_h"], memories["packed_h"]);
    forward.execute(stream, forward_arguments);
    back_x.execute(stream, memories["w_x"], memories["back_x"]);
    back_h.execute(stream, memories["w_h"], memories["back_h"]);
    for (const char* name : {"sum_x", "sum_h", "db"}) clear(memories[name]);
    backward.execute(stream, backward_arguments);
    unpack_x.execute(stream, memories["sum_x"], memories["dw_x"]);
    unpack_h.execute(stream, memories["sum_h"], memories["dw_h"]);
    stream.wait();
  }

  // The array of that name; after steps, the last state lies where the next one will read it.
  memory& named(const std::string& name, bool stepped) {
    if (stepped && name == "h_n") return forward_arguments[DNNL_ARG_SRC_ITER];
    if (stepped && name == "c_n") return forward_arguments[DNNL_ARG_SRC_ITER_C];
    return memories.at(name);
  }

 private:
  void prepare_backward(const lstm_forward::primitive_desc& hint) {
    const lstm_backward::primitive_desc desc(engine, prop_kind::backward, direction, x, state, state, any_x, any_h, b,
                                             y, state, state, x, state, state, any_x, any_h, b, y, state, state, hint);
    make({{"workspace", hint.workspace_desc()},
          {"dx", x},
          {"dh0", state},
          {"dc0", state},
          {"dw_x", w_x},
          {"dw_h", w_h},
          {"db", b},
          {"dy", y},
          {"dh_n", state},
          {"dc_n", state},
          {"back_x", desc.weights_layer_desc()},
          {"back_h", desc.weights_iter_desc()},
          {"sum_x", desc.diff_weights_layer_desc()},
          {"sum_h", desc.diff_weights_iter_desc()}});
    backward = lstm_backward(desc);
    back_x = dnnl::reorder(memories["w_x"], memories["back_x"]);
    back_h = dnnl::reorder(memories["w_h"], memories["back_h"]);
    unpack_x = dnnl::reorder(memories["sum_x"], memories["dw_x"]);
    unpack_h = dnnl::reorder(memories["sum_h"], memories["dw_h"]);
    forward_arguments[DNNL_ARG_WORKSPACE] = memories["workspace"];
    backward_arguments = arguments("back_x", "back_h");
    for (auto [argument, name] : std::vector<std::pair<int, const char*>>{{DNNL_ARG_WORKSPACE, "workspace"},
                                                                          {DNNL_ARG_DIFF_SRC_LAYER, "dx"},
                                                                          {DNNL_ARG_DIFF_SRC_ITER, "dh0"},
                                                                          {DNNL_ARG_DIFF_SRC_ITER_C, "dc0"},
                                                                          {DNNL_ARG_DIFF_WEIGHTS_LAYER, "sum_x"},
                                                                          {DNNL_ARG_DIFF_WEIGHTS_ITER, "sum_h"},
                                                                          {DNNL_ARG_DIFF_BIAS, "db"},
                                                                          {DNNL_ARG_DIFF_DST_LAYER, "dy"},
                                                                          {DNNL_ARG_DIFF_DST_ITER, "dh_n"},
                                                                          {DNNL_ARG_DIFF_DST_ITER_C, "dc_n"}})
      backward_arguments[argument] = memories[name];
  }

  Arguments arguments(const char* weights_x, const char* weights_h) {
    auto& m = memories;
    return {
        {DNNL_ARG_SRC_LAYER, m["x"]},           {DNNL_ARG_SRC_ITER, m["h0"]},          {DNNL_ARG_SRC_ITER_C, m["c0"]},
        {DNNL_ARG_WEIGHTS_LAYER, m[weights_x]}, {DNNL_ARG_WEIGHTS_ITER, m[weights_h]}, {DNNL_ARG_BIAS, m["b"]},
        {DNNL_ARG_DST_LAYER, m["y"]},           {DNNL_ARG_DST_ITER, m["h_n"]},         {DNNL_ARG_DST_ITER_C, m["c_n"]}};
  }

  void make(const Layouts& layouts) {
    for (const auto& [name, layout] : layouts) clear(memories[name] = memory(layout, engine));
  }

  static void clear(memory& array) {
    auto* data = array.map_data<char>();
    std::memset(data, 0, array.get_desc().get_size());
    array.unmap_data(data);
  }

  static constexpr auto direction = dnnl::rnn_direction::unidirectional_left2right;
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  memory::desc x, y, state, w_x, w_h, any_x, any_h, b;
  std::unordered_map<std::string, memory> memories;
  Arguments forward_arguments, backward_arguments;
  lstm_forward forward;
  lstm_backward backward;
  dnnl::reorder pack_x, pack_h, back_x, back_h, unpack_x, unpack_h;
};

// No exception may cross into C: its message is kept, and the caller gets false.
thread_local std::string message;

template <typename Work>
bool tried(Work work) {
  try {
    work();
    return true;
  } catch (const std::exception& error) {
    message = error.what();
    return false;
  }
}

}  // namespace

extern "C" {

const char* last_error() { return message.c_str(); }

void* create(long T, long B, long I, long H, bool training) {
  void* made = nullptr;
  tried([&] { made = new Lstm(T, B, I, H, training); });
  return made;
}
void destroy(Lstm* lstm) { delete lstm; }

// Copies the array `name` from `data` or into it.
bool copy(Lstm* lstm, const char* name, float* data, bool into, bool stepped) {
  return tried([&] {
    memory& array = lstm->named(name, stepped);
    auto* own = array.map_data<char>();
    const size_t size = array.get_desc().get_size();
    into ? std::memcpy(data, own, size) : std::memcpy(own, data, size);
    array.unmap_data(own);
  });
}

bool pack(Lstm* lstm) {
  return tried([&] { lstm->pack(); });
}
bool infer(Lstm* lstm) {
  return tried([&] { lstm->infer(); });
}
bool step(Lstm* lstm) {
  return tried([&] { lstm->step(); });
}
bool train(Lstm* lstm) {
  return tried([&] { lstm->train(); });
}
}
