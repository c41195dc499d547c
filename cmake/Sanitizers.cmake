# TORCHSNAPSHOT_SANITIZE: a list for -fsanitize, such as "address,undefined" or "thread".
set(TORCHSNAPSHOT_SANITIZE "" CACHE STRING "Sanitizers to build with")
if(TORCHSNAPSHOT_SANITIZE)
  add_compile_options(-fsanitize=${TORCHSNAPSHOT_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${TORCHSNAPSHOT_SANITIZE})
endif()
