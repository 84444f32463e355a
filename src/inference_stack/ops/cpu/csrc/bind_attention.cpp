#include "module.hpp"

namespace istack {
void bind_attention(nb::module_&, nb::class_<Recording>&) {}
}  // namespace istack
