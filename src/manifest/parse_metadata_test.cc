// Hostile and broken metadata. tests/attacks/ has a file for each attack.
#include <sys/resource.h>

#include <chrono>
#include <filesystem>
#include <random>
#include <set>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "manifest/readers.h"
#include "manifest/test_support.h"
#include "torchsnapshot/error.h"
#include "torchsnapshot/manifest.h"

namespace torchsnapshot {
namespace {

using testing::HasSubstr;

bool have_yaml() {
  try {
    read_yaml_metadata("a: b");
  } catch (const Error& error) {
    return error.code() != ErrorCode::kUnsupported;
  }
  return true;
}

/// The message of the error that the text gives; empty when it is accepted.
std::string error_of(std::string_view text) {
  try {
    parse_metadata(text);
    return "";
  } catch (const Error& error) {
    EXPECT_TRUE(error.code() == ErrorCode::kCorrupt || error.code() == ErrorCode::kUnsupported)
        << to_string(error.code()) << ": " << error.what();
    EXPECT_THAT(error.what(), testing::StartsWith("snapshot metadata: "));
    return error.what();
  }
}

struct Attack {
  std::string name;
  std::string message;
};

const Attack kAttacks[] = {
    {"negative_size", "entry '0/m/w': negative size -3 in dimension 1"},
    {"size_overflow", "overflows"},
    {"size_overflow_behind_zero", "overflows"},
    {"bytes_overflow", "overflows"},
    {"huge_number", "field 'shape': line"},
    {"number_out_of_range", "number '9223372036854775808' is out of range"},
    {"fractional_size", "expected an integer, found '2.0'"},
    {"exponent_size", "expected an integer, found '2e3'"},
    {"location_parent", "location '../../etc/passwd' leaves the snapshot"},
    {"location_parent_inside", "leaves the snapshot"},
    {"location_absolute", "location '/etc/passwd' is absolute"},
    {"location_empty", "is empty"},
    {"location_root", "names the folder of the snapshot"},
    {"location_nul", "contains a NUL byte"},
    {"object_location_parent", "leaves the snapshot"},
    {"shard_location_parent", "shard 0: location '../x' leaves the snapshot"},
    {"byte_range_reversed", "[24, 0] is no range of bytes"},
    {"byte_range_negative", "[-24, 0] is no range of bytes"},
    {"byte_range_one_number", "expected two numbers"},
    {"byte_range_three_numbers", "expected two numbers"},
    {"byte_range_string", "expected a list, found a string"},
    {"byte_range_short", "has 20 bytes, which does not fit shape [2, 3]"},
    {"byte_range_long", "has 28 bytes, which does not fit shape [2, 3]"},
    {"qtensor_range", "does not fit shape"},
    {"per_channel_range", "does not fit shape"},
    {"quantized_raw", "can't hold dtype torch.qint8"},
    {"float_as_qtensor", "can't hold dtype torch.float32"},
    {"unknown_dtype", "entry '0/m/w': field 'dtype': line 9, column 13: unknown dtype 'torch.float33'"},
    {"unknown_serializer", "unknown serializer 'exec'"},
    {"unknown_object_serializer", "unknown serializer 'exec' of an object"},
    {"unknown_type", "unknown entry type 'Exec'"},
    {"unknown_field", "unknown field 'extra'"},
    {"foreign_field", "field 'keys' does not belong to an entry of type 'list'"},
    {"missing_type", "field 'type' is missing"},
    {"missing_shape", "field 'shape' is missing"},
    {"missing_keys", "field 'keys' is missing"},
    {"wrong_type_shape", "field 'shape': line"},
    {"wrong_type_size", "expected a number, found a string"},
    {"wrong_type_replicated", "expected a boolean, found a string"},
    {"wrong_type_location", "expected a string, found a number"},
    {"wrong_type_entry", "expected an object, found a list"},
    {"wrong_type_key", "expected a string, found null"},
    {"float_key", "expected an integer, found '1.5'"},
    {"same_key_twice", "two keys read 'a'"},
    {"int_and_str_key", "two keys read '1'"},
    {"rank_out_of_range", "rank 1 is out of range: world_size is 1"},
    {"rank_negative", "does not begin with a rank"},
    {"rank_missing", "does not begin with a rank"},
    {"rank_only", "does not begin with a rank"},
    {"rank_leading_zero", "does not begin with a rank"},
    {"rank_overflow", "does not begin with a rank"},
    {"path_too_deep", "nested more than 512 levels deep"},
    {"world_size_zero", "world_size 0 is out of range"},
    {"world_size_negative", "world_size -1 is out of range"},
    {"world_size_absurd", "world_size 1099511627776 is out of range"},
    {"chunks_overlap", "chunks overlap"},
    {"chunks_same_twice", "chunks overlap"},
    {"chunks_gap", "chunks do not cover the tensor"},
    {"chunks_none", "chunks do not cover the tensor"},
    {"chunk_outside", "chunk 1: the box of offsets [3, 0] and sizes [2, 3] is not inside the tensor's shape [4, 3]"},
    {"chunk_other_rank", "is not inside the tensor's shape"},
    {"chunk_other_dtype", "chunk 0: dtype is torch.int32, the tensor's is torch.float32"},
    {"chunk_other_shape", "differ from the shape [3, 4] of the stored tensor"},
    {"chunk_offsets_length", "differ in length"},
    {"chunk_negative_offset", "negative offset -1"},
    {"shard_end_overflow", "offset plus size overflows"},
    {"shard_negative_size", "negative size -3"},
    {"shards_other_dims", "shards differ in their number of dimensions"},
    {"shards_other_dtype", "shard 1: dtype is torch.int32"},
    {"shard_no_tensor", "field 'tensor' is missing"},
    {"shard_unknown_field", "unknown field 'x'"},
    {"shard_in_shard", "unknown field 'shards'"},
    {"shard_other_type", "a piece must be of type 'Tensor'"},
    {"mesh_ragged", "the lists are not of the same length"},
    {"mesh_uneven", "the lists are not nested evenly"},
    {"mesh_scalar", "expected a list, found a number"},
    {"mesh_deep", "nested too deeply"},
    {"mesh_negative_rank", "negative rank -1 in the mesh"},
    {"dim_map_length", "dim_map has 1 dimensions, the shards have 2"},
    {"dim_map_range", "names a dimension that the mesh lacks"},
    {"int_text", "serialized_value '0x10' is no int"},
    {"int_empty", "is no int"},
    {"int_minus_zero", "is no int"},
    {"bool_text", "serialized_value 'true' is no bool"},
    {"bytes_text", "is no bytes"},
    {"bytes_stray_bits", "is no bytes"},
    {"float_short", "is no float"},
    {"primitive_number", "expected a string, found a number"},
    {"unknown_top_level", "unknown top-level key 'x'"},
    {"no_world_size", "top-level key 'world_size' is missing"},
    {"no_manifest", "top-level key 'manifest' is missing"},
    {"no_version", "top-level key 'version' is missing"},
    {"manifest_list", "expected an object, found a list"},
    {"world_size_string", "expected a number, found a string"},
    {"kinds_differ", "is a DTensor on one rank and a ShardedTensor on another"},
    {"ranks_differ_in_dtype", "entry '1/m/w': dtype is torch.int32, the tensor's is torch.float32"},
    {"ranks_differ_in_dims", "the shards have 1 dimensions, those of another rank 2"},
    {"duplicate_path", "line 2, column 2: the manifest has two entries '0/m'"},
    {"duplicate_path_escaped", "the manifest has two entries '0/m'"},
    {"duplicate_field", "field 'type' appears twice"},
    {"duplicate_shard_field", "field 'sizes' appears twice"},
    {"duplicate_top_level", "top-level key 'version' appears twice"},
    {"trailing_garbage", "something follows the end of the document"},
    {"two_documents", "something follows the end of the document"},
    {"truncated", "the text ends too early (truncated?)"},
    {"trailing_comma", "expected a value after ','"},
    {"comment", "expected a key in double quotes"},
    {"single_quotes", "expected a key in double quotes"},
    {"leading_zero", "a number with a leading zero"},
    {"nan", "expected a value, found 'N'"},
    {"control_character", "a control character in a string"},
    {"bad_escape", "unknown escape 'x'"},
    {"bad_unicode_escape", "expected four hex digits"},
    {"nesting_in_shape", "expected a number, found a list"},
    {"nesting_of_objects", "unknown field 'manifest'"},
    {"list_on_top", "it is a list, and should be a mapping"},
    {"list_nesting_on_top", "it is a list, and should be a mapping"},
    {"empty", "it is empty"},
    {"blank", "it is empty"},
    {"bad_utf8", "a string is not UTF-8"},
    {"overlong_utf8", "a string is not UTF-8"},
    {"raw_surrogate", "a string is not UTF-8"},
    {"utf16", ""},
    {"yaml_alias_to_itself", "an alias refers to what it is part of"},
    {"yaml_alias_bomb", "aliases expand to too much"},
    {"yaml_unknown_alias", "not valid YAML"},
    {"yaml_python_tag", "is not supported"},
    {"yaml_merge_key", "expected a string, found a value of another type"},
    {"yaml_plain_float", "expected a string, found a value of another type"},
    {"yaml_plain_bool", "expected a string, found a boolean"},
    {"yaml_octal", "expected a number, found a value of another type"},
    {"yaml_two_documents", "a second document follows"},
    {"yaml_scalar", "expected an object, found a string"},
    {"yaml_nesting", "nested too deeply"},
    {"yaml_block_nesting", "nested too deeply"},
    {"yaml_tab", "not valid YAML"},
    {"yaml_duplicate_field", "field 'type' appears twice"},
    {"yaml_missing_field", "field 'keys' is missing"},
    {"yaml_negative_size", "negative size -3"},
};

TEST(ParseMetadataTest, EveryAttackGivesItsError) {
  const std::filesystem::path folder = test::tests_dir() / "attacks";
  std::set<std::string> tested;
  for (const Attack& attack : kAttacks) {
    const bool yaml = attack.name.starts_with("yaml_");
    const std::string file = attack.name + (yaml ? ".yaml" : ".json");
    tested.insert(file);
    if ((yaml || attack.name == "utf16") && !have_yaml()) continue;
    const std::string message = error_of(test::read_file(folder / file));
    EXPECT_NE(message, "") << file << " is accepted";
    EXPECT_THAT(message, HasSubstr(attack.message)) << file;
    EXPECT_LT(message.size(), 2000U) << file;
  }
  std::set<std::string> files;
  for (const auto& item : std::filesystem::directory_iterator(folder)) files.insert(item.path().filename().string());
  files.erase("README.md");
  EXPECT_EQ(files, tested) << "each file has its line in the table";
}

const std::string& sample() {
  static const std::string text = test::read_file(test::tests_dir() / "data/metadata/yaml_pair.json");
  return text;
}

TEST(ParseMetadataTest, TruncationAnywhereIsAnError) {
  ASSERT_EQ(error_of(sample()), "");
  for (std::size_t size = 0; size < sample().size(); ++size) {
    ASSERT_NE(error_of(std::string_view(sample()).substr(0, size)), "") << "cut at " << size;
  }
}

TEST(ParseMetadataTest, MutationsNeverCrash) {
  std::mt19937 rng(5);
  int accepted = 0;
  for (int i = 0; i < 10000; ++i) {
    std::string text = sample();
    for (std::size_t edits = 1 + rng() % 4; edits > 0; --edits) {
      const std::size_t at = rng() % text.size();
      switch (rng() % 5) {
        case 0:
          text[at] = static_cast<char>(rng());
          break;
        case 1:
          text.insert(at, 1, static_cast<char>(rng()));
          break;
        case 2:
          text.erase(at, rng() % 20);
          break;
        case 3: {
          // A digit: what changes sizes and ranges and leaves the JSON valid.
          const std::size_t digit = text.find_first_of("0123456789", at);
          if (digit != std::string::npos) text.insert(digit, std::string(1 + rng() % 18, '9'));
          break;
        }
        default:
          text.insert(at, text.substr(rng() % text.size(), rng() % 100));
      }
    }
    accepted += error_of(text).empty() ? 1 : 0;
  }
  EXPECT_GT(accepted, 100) << "some mutations are harmless";
  EXPECT_LT(accepted, 9000);
}

/// Runs the parser on the text; gives its error and checks that it came at once and without memory.
std::string quick_error_of(const std::string& text) {
  const auto peak_kib = [] {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_maxrss;
  };
  const auto before = peak_kib();
  const auto start = std::chrono::steady_clock::now();
  std::string message = error_of(text);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10));
  EXPECT_LT(peak_kib() - before, 512 * 1024) << "KiB";
  return message;
}

constexpr std::size_t kHuge = 100'000'000;

TEST(ParseMetadataTest, HundredMegabytesOfNesting) {
  const std::string head = R"({"version": "0.1.0", "world_size": 1, "manifest": {"0/m": {"type": "Tensor", )";
  EXPECT_THAT(quick_error_of(std::string(kHuge, '[')), HasSubstr("it is a list"));
  EXPECT_THAT(quick_error_of(std::string(kHuge, '{')), HasSubstr("expected a key"));
  EXPECT_THAT(quick_error_of(head + R"("mesh": )" + std::string(kHuge, '[')), HasSubstr("nested too deeply"));
  EXPECT_THAT(quick_error_of(head + R"("shape": )" + std::string(kHuge, '[')), HasSubstr("expected a number"));
}

TEST(ParseMetadataTest, HundredMegabytesOfYamlNesting) {
  if (!have_yaml()) GTEST_SKIP() << "built without yaml-cpp";
  EXPECT_NE(quick_error_of("version: " + std::string(kHuge, '[')), "");
  constexpr std::size_t kLarge = kHuge / 20;  // far more than may be read
  EXPECT_NE(quick_error_of("version: " + std::string(kLarge, '{')), "");
  std::string commas = "version: ";
  while (commas.size() < kLarge) commas += "[a,";
  EXPECT_NE(quick_error_of(commas), "");
  EXPECT_NE(quick_error_of("version: &a" + std::string(kLarge, '[')), "");
  EXPECT_NE(quick_error_of("version:\n" + std::string(kLarge, '-')), "");
  std::string dashes = "version:\n ";
  while (dashes.size() < kLarge) dashes += "- ";
  EXPECT_NE(quick_error_of(dashes), "");
  std::string complex_keys;
  while (complex_keys.size() < kLarge) complex_keys += "? ";
  EXPECT_NE(quick_error_of(complex_keys), "");
}

TEST(ParseMetadataTest, FieldsInAnyOrderAndOptionalOnesMayLack) {
  const SnapshotMetadata metadata = parse_metadata(R"({"manifest": {
    "0/t": {"shape": [2], "serializer": "torch_save", "dtype": "torch.int8", "replicated": true, "location": "x", "type": "Tensor"},
    "0/f": {"replicated": false, "serialized_value": "5", "type": "int"},
    "0/d": {"keys": [-0, true, "x"], "type": "dict"},
    "0/s": {"shards": [{"tensor": {"location": "x", "serializer": "torch_save", "dtype": "torch.int8", "shape": [],
                        "replicated": false}, "sizes": [], "offsets": []}], "type": "ShardedTensor"}
  }, "world_size": 1, "version": "0.1.0"})");
  EXPECT_EQ(std::get<TensorEntry>(*metadata.manifest.find("0/t")),
            (TensorEntry{"x", "torch_save", DType::kInt8, {2}, true, std::nullopt}));
  EXPECT_EQ(std::get<PrimitiveEntry>(*metadata.manifest.find("0/f")),
            (PrimitiveEntry{PrimitiveType::kInt, "5", std::nullopt, false}));
  EXPECT_EQ(std::get<DictEntry>(*metadata.manifest.find("0/d")).keys,
            (std::vector<Key>{Key(Integer(0)), Key("True"), Key("x")}));
  EXPECT_EQ(std::get<ShardedTensorEntry>(*metadata.manifest.find("0/s")).shards.size(), 1U);
}

TEST(ParseMetadataTest, UnknownNamesAreUnsupported) {
  for (const char* name : {"unknown_dtype", "unknown_serializer", "unknown_type"}) {
    try {
      parse_metadata(test::read_file(test::tests_dir() / "attacks" / (std::string(name) + ".json")));
      FAIL() << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupported) << name;
    }
  }
}

}  // namespace
}  // namespace torchsnapshot
