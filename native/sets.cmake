# The instruction sets that the kernels are compiled for: one list for the package and for native/tests. Every kernel is
# compiled once for each set of the processor's family; which one runs is decided when the package is used, by
# src/pocketgem/kernels/cpu.py, which knows what each set needs.

# Sets that are not to be built: the tests of one machine need not wait for those that it cannot run.
set(POCKETGEM_LEAVE_OUT "" CACHE STRING "sets that are left out, separated by semicolons")

# Adds all sets, and the list of them, to a target that has kernel_set.cpp. Further arguments are compiler options.
function(pocketgem_kernel_sets target)
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64|amd64")
    set(avx512 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni -mfma -mf16c
      $<$<CXX_COMPILER_ID:GNU>:-Wno-uninitialized>) # GCC 12 warns of its own header
    pocketgem_kernel_set(${target} amx avx512 ${ARGN} ${avx512} -mamx-tile -mamx-int8)
    pocketgem_own_products(amx tiles.inl simd/tiles_amx.h)
    pocketgem_kernel_set(${target} avx512 avx512 ${ARGN} ${avx512})
    pocketgem_kernel_set(${target} avx2-vnni avx2 ${ARGN} -mavx2 -mfma -mf16c -mavxvnni)
    pocketgem_kernel_set(${target} avx2 avx2 ${ARGN} -mavx2 -mfma -mf16c
      # GCC would put off the sums of 16 bits until all products are there, in memory: 21 for 36 products a cycle.
      "$<$<CXX_COMPILER_ID:GNU>:-fno-tree-ter;-fno-tree-reassoc>")
    pocketgem_own_products(avx2 words.inl)
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
    pocketgem_kernel_set(${target} neon-i8mm neon ${ARGN} -march=armv8.2-a+dotprod+fp16+i8mm)
    pocketgem_own_products(neon_i8mm squares.inl)
    pocketgem_kernel_set(${target} neon neon ${ARGN} -march=armv8.2-a+dotprod+fp16)
    pocketgem_kernel_set(${target} neon-base neon ${ARGN} -march=armv8-a) # Raspberry Pi 3 and 4, older phones
  endif()
  pocketgem_kernel_set(${target} portable portable ${ARGN})
  set_source_files_properties(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/kernel_set.cpp PROPERTIES
    COMPILE_DEFINITIONS "POCKETGEM_SETS=${POCKETGEM_SETS}")
endfunction()

# isa.cpp once more: for the set `name`, in the vocabulary of simd/`simd`.h.
function(pocketgem_kernel_set target name simd)
  if(name IN_LIST POCKETGEM_LEAVE_OUT)
    return()
  endif()
  string(REPLACE "-" "_" identifier ${name})
  set(kernels kernels_${identifier})
  add_library(${kernels} OBJECT ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/isa.cpp)
  set_target_properties(${kernels} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden)
  target_compile_features(${kernels} PRIVATE cxx_std_20)
  target_compile_definitions(${kernels} PRIVATE
    POCKETGEM_SIMD="simd/${simd}.h" POCKETGEM_ISA=${identifier} POCKETGEM_ISA_NAME="${name}")
  # -ffp-contract=off: a product and a sum become one rounding only where the source says fma, on every path alike.
  # The two -fno-ipa: built by GCC 12 at -O3 without them, native/tests found avx512's Q5_K results not written, as if
  # the calls that store them had been taken for calls without effect; with them it finds nothing.
  target_compile_options(${kernels} PRIVATE -O3 -ffp-contract=off
    "$<$<CXX_COMPILER_ID:GNU>:-fno-ipa-modref;-fno-ipa-pure-const>" ${ARGN})
  target_sources(${target} PRIVATE $<TARGET_OBJECTS:${kernels}>)
  set(POCKETGEM_SETS "${POCKETGEM_SETS}POCKETGEM_SET(${identifier}) " PARENT_SCOPE)
endfunction()

# The set multiplies in a way of its own, the file `own`; a third name is the file that is written in.
function(pocketgem_own_products identifier own)
  if(NOT TARGET kernels_${identifier})
    return()
  endif()
  target_compile_definitions(kernels_${identifier} PRIVATE POCKETGEM_OWN="${own}")
  if(ARGN)
    target_compile_definitions(kernels_${identifier} PRIVATE POCKETGEM_UNIT="${ARGN}")
  endif()
endfunction()
