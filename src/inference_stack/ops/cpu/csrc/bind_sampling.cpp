#include "module.hpp"

namespace istack {
void bind_sampling(nb::module_&) {}
}  // namespace istack
