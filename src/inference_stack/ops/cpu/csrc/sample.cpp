#include "sample.hpp"
