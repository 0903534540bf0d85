//! Rows as Parquet: all columns of `location_history`, by their names and types; times are UTC microseconds.

use super::output::Output;
use super::{Row, Writer};
use anyhow::Context;
use parquet::basic::{Compression, ZstdLevel};
use parquet::column::writer::ColumnWriterImpl;
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, FloatType, Int32Type, Int64Type};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use std::sync::Arc;

/// Rows in memory, and in a row group.
const GROUP_ROWS_MAX: usize = 100_000;

const SCHEMA: &str = "message location_history {
    required int64 user_id;
    required int64 reported_at (TIMESTAMP(MICROS, true));
    required int64 received_at (TIMESTAMP(MICROS, true));
    optional double lat;
    optional double lon;
    optional float accuracy_m;
    optional float speed_mps;
    optional float heading_deg;
    optional int64 cell;
    required binary topic (STRING);
    required int32 kafka_partition;
    required int64 kafka_offset;
}";

/// Being written.
pub struct Parquet {
    writer: SerializedFileWriter<Output>,
    rows: Vec<Row>,
    writing: String,
}

impl Parquet {
    /// Begins.
    pub fn begin(output: Output) -> anyhow::Result<Parquet> {
        let writing = output.writing();
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let properties = WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::default()));
        let properties = Arc::new(properties.set_created_by("nearby".to_owned()).build());
        let writer = SerializedFileWriter::new(output, schema, properties).with_context(|| writing.clone())?;
        Ok(Parquet { writer, rows: Vec::with_capacity(GROUP_ROWS_MAX), writing })
    }

    fn write_group(&mut self) -> Result<(), ParquetError> {
        let rows = &self.rows;
        let mut group = self.writer.next_row_group()?;
        required::<Int64Type>(&mut group, rows.iter().map(|row| row.user_id))?;
        required::<Int64Type>(&mut group, rows.iter().map(|row| row.reported_at_us))?;
        required::<Int64Type>(&mut group, rows.iter().map(|row| row.received_at_us))?;
        optional::<DoubleType>(&mut group, rows.iter().map(|row| row.lat))?;
        optional::<DoubleType>(&mut group, rows.iter().map(|row| row.lon))?;
        optional::<FloatType>(&mut group, rows.iter().map(|row| row.accuracy_m))?;
        optional::<FloatType>(&mut group, rows.iter().map(|row| row.speed_mps))?;
        optional::<FloatType>(&mut group, rows.iter().map(|row| row.heading_deg))?;
        optional::<Int64Type>(&mut group, rows.iter().map(|row| row.cell))?;
        required::<ByteArrayType>(&mut group, rows.iter().map(|row| ByteArray::from(row.topic.as_str())))?;
        required::<Int32Type>(&mut group, rows.iter().map(|row| row.kafka_partition))?;
        required::<Int64Type>(&mut group, rows.iter().map(|row| row.kafka_offset))?;
        group.close()?;
        self.rows.clear();
        Ok(())
    }
}

impl Writer for Parquet {
    fn row(&mut self, row: Row) -> anyhow::Result<()> {
        self.rows.push(row);
        if self.rows.len() >= GROUP_ROWS_MAX {
            self.write_group().with_context(|| self.writing.clone())?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> anyhow::Result<Output> {
        if !self.rows.is_empty() {
            self.write_group().with_context(|| self.writing.clone())?;
        }
        self.writer.into_inner().context(self.writing)
    }
}

fn required<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Output>,
    values: impl Iterator<Item = T::T>,
) -> Result<(), ParquetError> {
    let values: Vec<T::T> = values.collect();
    column::<T>(group, |column| column.write_batch(&values, None, None))
}

fn optional<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Output>,
    values: impl Iterator<Item = Option<T::T>>,
) -> Result<(), ParquetError> {
    let (mut there, mut levels) = (Vec::new(), Vec::new());
    for value in values {
        levels.push(i16::from(value.is_some()));
        there.extend(value);
    }
    column::<T>(group, |column| column.write_batch(&there, Some(&levels), None))
}

fn column<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Output>,
    write: impl FnOnce(&mut ColumnWriterImpl<'_, T>) -> Result<usize, ParquetError>,
) -> Result<(), ParquetError> {
    let mut column = group.next_column()?.ok_or_else(|| ParquetError::General("one column too many".to_owned()))?;
    write(column.typed::<T>())?;
    column.close()
}
