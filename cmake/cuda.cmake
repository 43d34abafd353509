# The module _cuda. FASTLSTM_CUDA=ON builds it for every architecture of the list, AUTO for the GPU of this machine, where it and
# nvcc are found.
# A PTX, most of the work, serves several: PTX of their own would give 86, 89 and 120 the same instructions. The last one goes
# along, for architectures to come.
set(generate_code
    --generate-code=arch=compute_80,code=[sm_80,sm_86,sm_89]
    --generate-code=arch=compute_90,code=[sm_90]
    --generate-code=arch=compute_100,code=[sm_100,sm_120,compute_100])
set(cuda_least 12.8)

if(NOT FASTLSTM_CUDA MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "FASTLSTM_CUDA is ${FASTLSTM_CUDA}, expected AUTO, ON or OFF")
endif()

if(FASTLSTM_CUDA STREQUAL "AUTO")
    find_program(nvidia_smi nvidia-smi)
    set(gpus "")
    if(nvidia_smi)
        execute_process(COMMAND ${nvidia_smi} --query-gpu=name --format=csv,noheader OUTPUT_VARIABLE gpus ERROR_QUIET
            RESULT_VARIABLE failed)
    endif()
    if(NOT gpus OR failed)
        message(STATUS "No CUDA: there is no GPU here (FASTLSTM_CUDA=ON builds without one)")
        return()
    endif()
    set(generate_code -arch=native)
elseif(FASTLSTM_CUDA STREQUAL "OFF")
    return()
endif()

if(FASTLSTM_CUDA STREQUAL "ON" AND NOT CUDAToolkit_ROOT) # pip's packages are a toolkit, too: see the extra `nvcc`
    file(GLOB nvcc_of_pip ${Python_SITELIB}/nvidia/cu*/bin/nvcc)
    if(nvcc_of_pip)
        get_filename_component(CUDAToolkit_ROOT ${nvcc_of_pip}/../.. ABSOLUTE)
        file(GLOB cudart_of_pip ${CUDAToolkit_ROOT}/lib/libcudart.so.*)
        set(CUDA_CUDART ${cudart_of_pip} CACHE FILEPATH "") # which CMake looks for by another name
    endif()
endif()
find_package(CUDAToolkit ${cuda_least} QUIET)
if(NOT CUDAToolkit_FOUND OR NOT CUDAToolkit_NVCC_EXECUTABLE)
    if(FASTLSTM_CUDA STREQUAL "AUTO")
        message(STATUS "No CUDA: there is no nvcc of version ${cuda_least} or newer")
        return()
    endif()
    message(FATAL_ERROR "FASTLSTM_CUDA is ON, but there is no CUDA toolkit ${cuda_least} or newer: put its nvcc on the PATH")
endif()
set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
set(CMAKE_CUDA_ARCHITECTURES OFF) # CMake would make a PTX for each
enable_language(CUDA)

set(CMAKE_CUDA_STANDARD 17)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_RUNTIME_LIBRARY Static) # such a module imports where there is no driver
# Of floats, to 2 ulp where the divisor is below 2^126, in a third of the instructions. A cell's divisors are below 2^124 (see
# activations.h), and its numerators and divisors err by more. The others are counts, deviations, 1 - p, and softsign's up to 2^60.
set(fast_division -prec-div=false)
add_library(kernels_cuda OBJECT csrc/cuda/layer_backward.cu csrc/cuda/layer_forward.cu csrc/cuda/state.cu)
target_compile_options(kernels_cuda PRIVATE ${generate_code} ${fast_division} "SHELL:-Werror all-warnings" --compress-mode=size
    "SHELL:--threads 0")
pybind11_add_module(_cuda csrc/python/cuda.cpp csrc/python/cell_options.cpp csrc/python/device_arrays.cpp
    $<TARGET_OBJECTS:kernels_cuda>)
target_link_libraries(_cuda PRIVATE CUDA::cudart_static)
string(REGEX MATCHALL "sm_[0-9]+|native" architectures "${generate_code}")
list(JOIN architectures " " architectures)
target_compile_definitions(_cuda PRIVATE "FASTLSTM_CUDA_ARCHITECTURES=\"${architectures}\"")
install(TARGETS _cuda LIBRARY DESTINATION fastlstm)
