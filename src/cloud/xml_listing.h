// The pages of listings in XML. Pure.
#pragma once

#include <string>
#include <vector>

#include "cloud/object_api.h"
#include "net/xml.h"

namespace torchsnapshot {

/// ListBucketResult, second version.
struct ObjectPage {
  std::vector<ListedObject> objects;
  bool goes_on = false;
  std::string next;  ///< the token of the next page
};
ObjectPage parse_object_page(const XmlElement& page);

/// ListMultipartUploadsResult.
struct UploadPage {
  std::vector<ListedUpload> uploads;
  bool goes_on = false;
  std::string next_key;
  std::string next_id;
};
UploadPage parse_upload_page(const XmlElement& page);

/// ListPartsResult.
struct PartPage {
  UploadFacts facts;
  bool goes_on = false;
  std::string next;  ///< number of the last part on this page
};
PartPage parse_part_page(const XmlElement& page);

}  // namespace torchsnapshot
