# What the C++ tests are built with, and torchsnapshot_add_test.
set(missing "")
find_package(GTest QUIET)
if(NOT GTest_FOUND OR NOT TARGET GTest::gmock)
  string(APPEND missing " libgtest-dev libgmock-dev")
endif()
find_package(nlohmann_json QUIET)
if(NOT nlohmann_json_FOUND)
  string(APPEND missing " nlohmann-json3-dev")
endif()
find_package(rapidcheck QUIET CONFIG)
if(NOT TARGET rapidcheck)
  string(APPEND missing " librapidcheck-dev")
endif()
if(missing)
  message(FATAL_ERROR "torchsnapshot: TORCHSNAPSHOT_BUILD_TESTS is on, but libraries of the tests are missing: "
                      "apt-get install${missing} (or run tools/setup.sh)")
endif()

# torchsnapshot_add_test(NAME program): runs a gtest program as the ctest NAME. Results lie as XML in
# test-results/ of the build tree, for tools/count_tests.py.
set(TORCHSNAPSHOT_TEST_RESULTS ${PROJECT_BINARY_DIR}/test-results)
function(torchsnapshot_add_test name program)
  target_link_libraries(${program} PRIVATE torchsnapshot_warnings GTest::gmock GTest::gtest_main
                                           nlohmann_json::nlohmann_json rapidcheck)
  add_test(NAME ${name} COMMAND ${program})
  if(name STREQUAL "snapshot")
    set_tests_properties(${name} PROPERTIES COST 1000)  # the longest goes first
  endif()
  set_tests_properties(${name} PROPERTIES
    TIMEOUT 600 ENVIRONMENT "GTEST_OUTPUT=xml:${TORCHSNAPSHOT_TEST_RESULTS}/cpp-${name}.xml;${TORCHSNAPSHOT_SANITIZER_ENV}")
endfunction()
