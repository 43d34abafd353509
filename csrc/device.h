// Marks what a GPU runs, too: the equations, and the random numbers.
#pragma once

#if defined(__CUDACC__)
#define DEVICE __host__ __device__
#else
#define DEVICE
#endif
