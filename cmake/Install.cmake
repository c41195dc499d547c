# cmake --install: one library, the public headers, and what find_package(torchsnapshot) needs.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/torchsnapshot)

install(TARGETS torchsnapshot_core EXPORT torchsnapshotTargets
        ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp)
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/torchsnapshot DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        COMPONENT cpp FILES_MATCHING PATTERN "*.h" PATTERN "torch.h" EXCLUDE)
install(EXPORT torchsnapshotTargets NAMESPACE torchsnapshot:: DESTINATION ${package_dir} COMPONENT cpp)
if(TORCHSNAPSHOT_BUILD_TORCH)  # a set of targets of its own: it needs Torch to be found
  install(TARGETS torchsnapshot_torch EXPORT torchsnapshot_torchTargets
          ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT cpp)
  install(FILES ${PROJECT_SOURCE_DIR}/include/torchsnapshot/torch.h
          DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/torchsnapshot COMPONENT cpp)
  install(EXPORT torchsnapshot_torchTargets NAMESPACE torchsnapshot:: DESTINATION ${package_dir} COMPONENT cpp)
endif()

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/torchsnapshotConfig.cmake.in
                              ${PROJECT_BINARY_DIR}/torchsnapshotConfig.cmake INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/torchsnapshotConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/torchsnapshotConfig.cmake ${PROJECT_BINARY_DIR}/torchsnapshotConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/cmake/FindLiburing.cmake
        DESTINATION ${package_dir} COMPONENT cpp)
