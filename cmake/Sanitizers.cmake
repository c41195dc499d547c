# TORCHSNAPSHOT_SANITIZE: a list for -fsanitize, such as "address,undefined" or "thread".
set(TORCHSNAPSHOT_SANITIZE "" CACHE STRING "Sanitizers to build with")
set(TORCHSNAPSHOT_SANITIZER_ENV "")  # what tests run with
if(TORCHSNAPSHOT_SANITIZE)
  add_compile_options(-fsanitize=${TORCHSNAPSHOT_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${TORCHSNAPSHOT_SANITIZE})
  set(supp ${PROJECT_SOURCE_DIR}/tools/sanitizers)
  # libtorch is not sanitized: what it keeps to the end is no leak of ours, and its containers carry no marks.
  if(TORCHSNAPSHOT_BUILD_TORCH)
    set(unsanitized ":detect_leaks=0:detect_container_overflow=0")
  endif()
  set(TORCHSNAPSHOT_SANITIZER_ENV
    "ASAN_OPTIONS=strict_string_checks=1:detect_stack_use_after_return=1:check_initialization_order=1${unsanitized}"
    "LSAN_OPTIONS=suppressions=${supp}/lsan.supp:print_suppressions=0"
    "UBSAN_OPTIONS=print_stacktrace=1:suppressions=${supp}/ubsan.supp"
    "TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=${supp}/tsan.supp")
endif()
