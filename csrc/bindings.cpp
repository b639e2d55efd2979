// The one file that knows Python. A torch.Tensor becomes an mcd::Tensor through its attributes, without torch's headers.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#define MCD_TARGET baseline
#include "operators.h"
#undef MCD_TARGET
#ifdef MCD_WITH_X86
#define MCD_TARGET avx2
#include "operators.h"
#undef MCD_TARGET
#define MCD_TARGET avx512
#include "operators.h"
#undef MCD_TARGET
#endif
#ifdef MCD_WITH_CUDA
#define MCD_TARGET cuda
#include "operators.h"
#undef MCD_TARGET
#endif

namespace py = pybind11;

namespace pybind11::detail {

template <> struct type_caster<mcd::Tensor> {
  PYBIND11_TYPE_CASTER(mcd::Tensor, const_name("torch.Tensor | None"));

  bool load(handle from, bool) {
    if (from.is_none()) return true;
    static const Names names;
    PyObject* self = from.ptr();
    const auto address =
        owned(PyObject_VectorcallMethod(names.data_ptr, &self, 1 | PY_VECTORCALL_ARGUMENTS_OFFSET, nullptr));
    value.data = PyLong_AsVoidPtr(address.ptr());
    const auto size = owned(PyObject_GetAttr(self, names.shape));
    if (!PyTuple_Check(size.ptr())) throw type_error("the shape of a tensor is no tuple");
    value.dims = int(PyTuple_GET_SIZE(size.ptr()));
    if (value.dims > 6) throw value_error("a tensor of more than 6 dimensions");
    for (int i = 0; i < value.dims; ++i) value.size[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(size.ptr(), i));
    if (PyErr_Occurred()) throw error_already_set();
    value.dtype = dtype_of(owned(PyObject_GetAttr(self, names.dtype)));
    return true;
  }

  // Of attributes, made once and kept to the end of the process: looking up a C string would make one for each call.
  struct Names {
    PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
    PyObject* shape = PyUnicode_InternFromString("shape");
    PyObject* dtype = PyUnicode_InternFromString("dtype");
  };

  static object owned(PyObject* result) {
    if (result == nullptr) throw error_already_set();
    return reinterpret_steal<object>(result);
  }

  static mcd::Dtype dtype_of(handle dtype) {
    // torch's dtypes are singletons, looked up once and kept to the end of the process.
    static const auto* known = [] {
      const module_ torch = module_::import("torch");
      auto* pointers = new PyObject*[9];
      int i = 0;
      for (const char* name : {"float32", "float64", "bfloat16", "float16", "int32", "int64", "bool", "int16", "uint8"})
        pointers[i++] = object(torch.attr(name)).release().ptr();
      return pointers;
    }();
    for (int i = 0; i < 9; ++i)
      if (dtype.ptr() == known[i]) return mcd::Dtype(i);
    throw type_error("tensor of an unsupported dtype");
  }
};

template <> struct type_caster<mcd::Where> {
  PYBIND11_TYPE_CASTER(mcd::Where, const_name("tuple[int, int]"));

  bool load(handle from, bool) {
    const auto where = from.cast<tuple>();
    value.threads = where[0].cast<int>();
    value.stream = reinterpret_cast<void*>(where[1].cast<uintptr_t>());
    return true;
  }
};

}  // namespace pybind11::detail

// The operators compiled for one target, as a submodule of its name. The GIL is given back while they run.
#define MCD_DEFINE(target, name) target.def(#name, &mcd::target::name, py::call_guard<py::gil_scoped_release>())
#define MCD_DEFINE_ALL(target)                         \
  do {                                                 \
    py::module_ target = module.def_submodule(#target); \
    MCD_DEFINE(target, backward_warp_fwd);             \
    MCD_DEFINE(target, backward_warp_bwd);             \
    MCD_DEFINE(target, photometric_error_fwd);         \
    MCD_DEFINE(target, photometric_error_bwd);         \
    MCD_DEFINE(target, view_synthesis_loss_fwd);       \
    MCD_DEFINE(target, forward_warp_fwd);              \
    MCD_DEFINE(target, forward_warp_bwd);              \
    MCD_DEFINE(target, smoothness_loss_fwd);           \
    MCD_DEFINE(target, smoothness_loss_bwd);           \
    MCD_DEFINE(target, motion_sparsity_fwd);           \
    MCD_DEFINE(target, motion_sparsity_bwd);           \
    MCD_DEFINE(target, instance_stats_fwd);            \
    MCD_DEFINE(target, instance_stats_bwd);            \
    MCD_DEFINE(target, align_scale_fwd);               \
    MCD_DEFINE(target, align_scale_bwd);               \
    MCD_DEFINE(target, scale_invariant_loss_fwd);      \
    MCD_DEFINE(target, scale_invariant_loss_bwd);      \
    MCD_DEFINE(target, fuse_depth_fwd);                \
    MCD_DEFINE(target, fuse_depth_bwd);                \
    MCD_DEFINE(target, colour_jitter_fwd);             \
  } while (false)

// On CPUs alone: what worker processes of the loader do.
#define MCD_DEFINE_CPU(target)                                \
  do {                                                        \
    MCD_DEFINE_ALL(target);                                   \
    py::module_ target = module.attr(#target);                \
    MCD_DEFINE(target, resize_lanczos_fwd);                   \
  } while (false)

PYBIND11_MODULE(_C, module) {
  module.doc() = "Compiled operators: a submodule for each target that this machine may have. mcd.ops.native calls them.";
  module.attr("version") = MCD_VERSION;  // of the package that it was built with: operators change between versions
  MCD_DEFINE_CPU(baseline);
#ifdef MCD_WITH_X86
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) MCD_DEFINE_CPU(avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    MCD_DEFINE_CPU(avx512);
#endif
#ifdef MCD_WITH_CUDA
  MCD_DEFINE_ALL(cuda);
#endif
}
