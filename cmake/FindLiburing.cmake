# Finds liburing 2.2 or newer: Liburing_FOUND, Liburing_LIBRARIES and the target Liburing::Liburing. The static archive
# comes first (Debian's is position-independent), so that what is built needs no liburing where it runs.
find_path(Liburing_INCLUDE_DIR liburing.h)
find_library(Liburing_LIBRARY NAMES liburing.a uring)
mark_as_advanced(Liburing_INCLUDE_DIR Liburing_LIBRARY)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(Liburing REQUIRED_VARS Liburing_LIBRARY Liburing_INCLUDE_DIR)
set(Liburing_LIBRARIES "")
if(Liburing_FOUND)
  set(Liburing_LIBRARIES Liburing::Liburing)
  if(NOT TARGET Liburing::Liburing)
    add_library(Liburing::Liburing UNKNOWN IMPORTED)
    set_target_properties(Liburing::Liburing PROPERTIES
      IMPORTED_LOCATION ${Liburing_LIBRARY} INTERFACE_INCLUDE_DIRECTORIES ${Liburing_INCLUDE_DIR})
  endif()
endif()
